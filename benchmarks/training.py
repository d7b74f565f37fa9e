"""Training in fp32 beside transformers and peft: same shapes, batches and optimizer (python -m benchmarks.training).

`--only NAME …` runs some of WORKS. Weights are drawn anew, which changes neither time nor memory. The rate counts trained
tokens. The limit is the machine's fp32 matrix product, by torch and by oneDNN, whichever is faster.
"""

import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.pairs import argument_parser, matrix_product_rate, measure_in_turn, peak_memory_bytes, report, seconds
from lamoid.adapt.lora import LoraConfig, add_lora
from lamoid.adapt.nf4 import Nf4Config, quantize_base
from lamoid.data.instruct import Example
from lamoid.data.packed import Batch
from lamoid.data.packing import PackedConversations
from lamoid.data.padded import EncoderBatch
from lamoid.inspect.anatomy import anatomy
from lamoid.inspect.flops import Method, training_flops
from lamoid.inspect.flops import Work as Amount
from lamoid.models.bert import PRESETS, Bert
from lamoid.models.heads import attach_head
from lamoid.models.llama import Llama, LlamaConfig
from lamoid.nn.linear import product
from lamoid.nn.losses import IGNORED
from lamoid.training.encoder_objectives import masked_tokens
from lamoid.training.loop import Progress, train
from lamoid.training.objectives import next_token
from lamoid.training.optim import make_optimizer

SMALL = LlamaConfig(4096, 384, 6, 6, 6, 64, 1024, 256, tied_embeddings=False)
SMOLLM2 = LlamaConfig(49_152, 576, 30, 9, 3, 64, 1536, 2048, tied_embeddings=True)
RANK, MASKED_SHARE, CHATS, CHAT_TOKENS, TOKENS_PER_BATCH = 8, 0.15, 500, (20, 400), 2048
Steps = Callable[[int], int]
"""Makes so many steps; returns how many tokens they trained."""


@dataclass(frozen=True)
class Work:
    """A shape, the rows and tokens of a batch, and what is trained. `trained` is the share of the tokens, from the end."""

    config: Any
    rows: int
    tokens: int
    method: str = "full"
    trained: float = 1.0
    packed: bool = False
    steps: int = 2


WORKS = {
    "pretraining-11m": Work(SMALL, 16, 256, steps=4),
    "smollm2-full": Work(SMOLLM2, 4, 512),
    "smollm2-lora": Work(SMOLLM2, 4, 512, "lora"),
    "smollm2-lora-answers": Work(SMOLLM2, 4, 512, "lora", trained=1 / 3),
    "smollm2-lora-chats": Work(SMOLLM2, 4, 512, "lora", packed=True, steps=4),
    "smollm2-qlora": Work(SMOLLM2, 4, 512, "qlora"),
    "bert-small": Work(PRESETS["bert-small"], 32, 128, trained=MASKED_SHARE, steps=3),
}


def random_ids(work: Work, position: int) -> Tensor:
    generator = torch.Generator().manual_seed(position)
    return torch.randint(work.config.vocab_size, (work.rows, work.tokens + 1), generator=generator)


def chats() -> list[np.ndarray]:
    """Ids of conversations of 20 to 400 tokens."""
    generator = np.random.default_rng(0)
    lengths = generator.integers(CHAT_TOKENS[0], CHAT_TOKENS[1] + 1, CHATS)
    return [generator.integers(0, SMOLLM2.vocab_size, n, dtype=np.int32) for n in lengths]


def masked(work: Work, position: int) -> tuple[Tensor, Tensor]:
    """Ids, and labels at 15 % of them."""
    ids = random_ids(work, position)[:, 1:]
    chosen = torch.rand(ids.shape, generator=torch.Generator().manual_seed(position)) < work.trained
    return ids, ids.where(chosen, IGNORED)


def our_batches(work: Work) -> Callable[[Any], tuple[Any, Any]]:
    if work.packed:
        trained = [np.arange(len(ids)) > 0 for ids in chats()]
        examples = [Example(ids, which, []) for ids, which in zip(chats(), trained, strict=True)]  # type: ignore[arg-type]
        return PackedConversations(examples, work.tokens, work.rows, seed=0)

    def of_text(position: tuple[int, int]) -> tuple[Any, Any]:
        following = (0, position[1] + 1)
        if work.config is not SMALL and work.config is not SMOLLM2:
            ids, labels = masked(work, position[1])
            return EncoderBatch(ids, torch.ones_like(ids), torch.zeros_like(ids), labels), following
        ids = random_ids(work, position[1])
        labels = ids[:, 1:].clone()
        labels[:, : round(work.tokens * (1 - work.trained))] = IGNORED
        return Batch(ids[:, :-1], labels), following

    return of_text


def ours(work: Work) -> tuple[Steps, nn.Module]:
    """Our loop on our model."""
    objective: Any = next_token
    if isinstance(work.config, LlamaConfig):
        model: nn.Module = Llama(work.config).initialise(0)
    else:
        encoder = Bert(replace(work.config, dropout=0.0)).initialise(0)
        model, objective = attach_head(encoder, "mlm", 0), masked_tokens
    if work.method == "qlora":
        model = quantize_base(model, Nf4Config())
    if work.method != "full":
        model = add_lora(model, LoraConfig(rank=RANK))
    optimizer, batches = make_optimizer(model.named_parameters()), our_batches(work)
    progress = Progress((0, 0))

    def go(n: int) -> int:
        before = progress.tokens
        ends = progress.step + n
        train(model, batches, objective, optimizer, schedule=lambda s: 1e-4, max_steps=ends, progress=progress)
        return progress.tokens - before

    return go, model


def their_batches(work: Work) -> Iterator[dict[str, Tensor]]:
    if work.packed:
        yield from padded_chats()
    position = 0
    while True:
        if isinstance(work.config, LlamaConfig):
            ids = random_ids(work, position)[:, :-1]
            labels = ids.clone()
            labels[:, : round(work.tokens * (1 - work.trained))] = IGNORED
        else:
            ids, labels = masked(work, position)
        yield {"input_ids": ids, "labels": labels}
        position += 1


def padded_chats() -> Iterator[dict[str, Tensor]]:
    """Conversations in random order, as many as fit into TOKENS_PER_BATCH when padded to the longest."""
    from tokenizers import Tokenizer, models
    from transformers import DataCollatorForSeq2Seq, PreTrainedTokenizerFast

    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel({"p": 0})), pad_token="p")
    collate = DataCollatorForSeq2Seq(tokenizer, label_pad_token_id=IGNORED)
    rows, found = np.random.default_rng(1).permutation(CHATS), chats()
    while True:
        batch: list[dict[str, list[int]]] = []
        for index in rows:
            ids = found[index].tolist()
            longest = max([len(ids), *(len(row["input_ids"]) for row in batch)])
            if (len(batch) + 1) * longest > TOKENS_PER_BATCH:
                yield collate(batch)
                batch = []
            batch.append({"input_ids": ids, "labels": ids, "attention_mask": [1] * len(ids)})


def theirs(work: Work) -> Steps:
    """A plain loop on the model of transformers, with peft's LoRA where there is one; the same optimizer and clipping."""
    import transformers

    warnings.simplefilter("ignore")
    c = work.config
    if isinstance(c, LlamaConfig):
        model: Any = transformers.LlamaForCausalLM(
            transformers.LlamaConfig(
                vocab_size=c.vocab_size,
                hidden_size=c.d_model,
                intermediate_size=c.d_ff,
                num_hidden_layers=c.n_layers,
                num_attention_heads=c.n_heads,
                num_key_value_heads=c.n_kv_heads,
                tie_word_embeddings=c.tied_embeddings,
                use_cache=False,
            )
        )
    else:
        shape = transformers.BertConfig(
            vocab_size=c.vocab_size,
            hidden_size=c.d_model,
            intermediate_size=c.d_ff,
            num_hidden_layers=c.n_layers,
            num_attention_heads=c.n_heads,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
        )
        model = transformers.BertForMaskedLM(shape)
    if work.method != "full":
        import peft

        model = peft.get_peft_model(model, peft.LoraConfig(r=RANK, lora_alpha=16, target_modules="all-linear"))
    model.train()
    optimizer, batches = make_optimizer(model.named_parameters()), their_batches(work)
    parameters = [p for p in model.parameters() if p.requires_grad]

    def go(n: int) -> int:
        n_trained = 0
        for _ in range(n):
            batch = next(batches)
            n_trained += int((batch["labels"] != IGNORED).sum())
            model(**batch).loss.backward()
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            for group in optimizer.param_groups:
                group["lr"] = 1e-4
            optimizer.step()
            optimizer.zero_grad()
        return n_trained

    return go


def rate(go: Steps, steps: int) -> float:
    """Trained tokens per second."""
    trained: list[int] = []
    spent = seconds(lambda: trained.append(go(steps)))
    return trained[0] / spent


def two_steps(name: str, who: str) -> None:
    """For the peak of memory, in a process of its own."""
    torch.set_num_threads(2)
    (ours(WORKS[name])[0] if who == "lamoid" else theirs(WORKS[name]))(2)


def weight_bytes(model: nn.Module) -> int:
    """Bytes of parameters and buffers, each once."""
    parts = {part.data_ptr(): part for part in [*model.parameters(), *model.buffers()]}
    return sum(part.untyped_storage().nbytes() for part in parts.values())


def onednn_rate(size: int = 2048, repeats: int = 8) -> float:
    """Best fp32 FLOP/s of a square matrix product that oneDNN makes."""
    a, b = torch.randn(size, size), torch.randn(size, size)
    return max(2 * size**3 / seconds(lambda: product(a, b)) for _ in range(repeats))


def flops_per_token(work: Work) -> float:
    """Operations of a step for each trained token."""
    trained = round(work.rows * work.tokens * work.trained)
    kind = "mlm" if not isinstance(work.config, LlamaConfig) else ""
    amount = Amount(work.rows, work.tokens, trained)
    return training_flops(anatomy(work.config, kind), amount, Method(work.method)) / trained  # type: ignore[arg-type]


def measure(name: str, arguments: Any) -> None:
    work = WORKS[name]
    our_steps, model = ours(work)
    systems = {"lamoid": partial(rate, our_steps, work.steps)}
    peers = ["transformers"]
    facts: dict[str, object] = {}
    if work.method == "qlora":
        lora, lora_model = ours(WORKS["smollm2-lora"])
        systems["our LoRA"] = partial(rate, lora, work.steps)
        facts["weights, beside our LoRA's"] = round(weight_bytes(model) / weight_bytes(lora_model), 3)
        peers = []
    else:
        systems["transformers"] = partial(rate, theirs(work), work.steps)
    rates = measure_in_turn(systems, arguments.rounds)
    peaks = {who: peak_memory_bytes(partial(two_steps, name, who)) for who in ["lamoid", *peers]}
    facts["peak memory"] = {who: f"{n_bytes / 1e9:.2f} GB" for who, n_bytes in peaks.items()}
    if peers:
        facts["peak memory ratio"] = round(peaks["lamoid"] / peaks["transformers"], 3)
    limits = {"torch.mm": matrix_product_rate(), "oneDNN": onednn_rate()}
    facts["matrix product limits"] = {who: f"{limit / 1e9:.0f} GFLOP/s" for who, limit in limits.items()}
    if not work.packed:
        own = sorted(rates["lamoid"])[len(rates["lamoid"]) // 2] * flops_per_token(work)
        facts["model operations"] = f"{own / 1e9:.0f} GFLOP/s"
        facts["share of the faster limit"] = f"{own / max(limits.values()):.0%}"
    report(f"training-{name}", "trained tokens/s", rates, facts, arguments.out)


def main() -> None:
    parser = argument_parser("training: Lamoid beside transformers and peft")
    parser.add_argument("--only", nargs="*", choices=WORKS, default=list(WORKS))
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    for name in arguments.only:
        measure(name, arguments)


if __name__ == "__main__":
    main()
