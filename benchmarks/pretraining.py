"""Pretraining an 11 M Llama in fp32 beside transformers: same weights, batches and optimizer (python -m benchmarks.pretraining).

The limit is the machine's fp32 matrix product; the model's work is 6 FLOP per parameter and token, and attention's.
"""

from functools import partial

import torch

from benchmarks.pairs import matrix_product_rate, measure_in_turn, parse_arguments, peak_memory_bytes, report, seconds
from lamoid.data.packed import Batch
from lamoid.models.llama import Llama, LlamaConfig
from lamoid.training.loop import Progress, train
from lamoid.training.objectives import next_token
from lamoid.training.optim import make_optimizer

ROWS, CONTEXT, STEPS, VOCABULARY = 16, 256, 3, 4096


def lamoid_steps(steps: int = STEPS) -> float:
    """Tokens per second of our loop."""
    config = LlamaConfig(VOCABULARY, 384, 6, 6, 6, 64, 1024, CONTEXT, tied_embeddings=False)
    model = Llama(config).initialise(0)
    optimizer = make_optimizer(model.named_parameters())

    def batches(position: int) -> tuple[Batch, int]:
        ids = torch.randint(VOCABULARY, (ROWS, CONTEXT + 1), generator=torch.Generator().manual_seed(position))
        return Batch(ids[:, :-1], ids[:, 1:]), position + 1

    def go(n: int) -> None:
        train(model, batches, next_token, optimizer, schedule=lambda s: 1e-3, max_steps=n, progress=Progress(0))

    go(1)
    return steps * ROWS * CONTEXT / seconds(lambda: go(steps))


def transformers_steps(steps: int = STEPS) -> float:
    """Tokens per second of a plain loop around transformers' Llama with the same optimizer and clipping."""
    from transformers import LlamaConfig as TheirConfig
    from transformers import LlamaForCausalLM

    config = TheirConfig(
        vocab_size=VOCABULARY,
        hidden_size=384,
        intermediate_size=1024,
        num_hidden_layers=6,
        num_attention_heads=6,
        max_position_embeddings=CONTEXT,
        use_cache=False,
    )
    model = LlamaForCausalLM(config).train()
    optimizer = make_optimizer(model.named_parameters())

    def go(n: int) -> None:
        for position in range(n):
            ids = torch.randint(VOCABULARY, (ROWS, CONTEXT + 1), generator=torch.Generator().manual_seed(position))
            loss = model(input_ids=ids[:, :-1], labels=ids[:, :-1]).loss  # transformers shifts the labels itself
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            for group in optimizer.param_groups:
                group["lr"] = 1e-3
            optimizer.step()
            optimizer.zero_grad()

    go(1)
    return steps * ROWS * CONTEXT / seconds(lambda: go(steps))


def main() -> None:
    arguments = parse_arguments("pretraining: Lamoid beside transformers")
    rates = measure_in_turn({"lamoid": lamoid_steps, "transformers": transformers_steps}, arguments.rounds)
    memory = {
        "lamoid": peak_memory_bytes(partial(lamoid_steps, 2)),
        "transformers": peak_memory_bytes(partial(transformers_steps, 2)),
    }
    limit = matrix_product_rate()
    n_parameters = sum(p.numel() for p in Llama(LlamaConfig(VOCABULARY, 384, 6, 6, 6, 64, 1024, CONTEXT)).parameters())
    multiplied = n_parameters - VOCABULARY * 384  # the input embedding is looked up, not multiplied
    flop_per_token = 6 * multiplied + 6 * 6 * CONTEXT * 384  # and causal attention: 12 T D per layer, halved
    share = sorted(rates["lamoid"])[len(rates["lamoid"]) // 2] * flop_per_token / limit
    facts = {
        "peak memory": {name: f"{n_bytes / 1e9:.2f} GB" for name, n_bytes in memory.items()},
        "peak memory ratio": round(memory["lamoid"] / memory["transformers"], 3),
        "matrix product limit": f"{limit / 1e9:.0f} GFLOP/s",
        "share of the limit": f"{share:.0%}",
    }
    report("pretraining-11m-fp32", "tokens/s", rates, facts, arguments.out)


if __name__ == "__main__":
    main()
