"""Decoding SmolLM2-135M's shape in fp32 through torch beside transformers (python -m benchmarks.decoding).

Random weights: speed does not depend on them. The limit is reading every weight once for each token.
"""

import torch

from benchmarks.pairs import measure_in_turn, memory_read_rate, parse_arguments, report, seconds
from lamoid.checkpoints.hf import config_to_hf
from lamoid.inference.decoder import TorchDecoder
from lamoid.models.llama import Llama, LlamaConfig

SMOLLM2 = LlamaConfig(49_152, 576, 30, 9, 3, 64, 1536, 8192, tied_embeddings=True, rope_base=100_000.0)
PROMPT, NEW_TOKENS = list(range(1, 21)), 48


def main() -> None:
    from transformers import LlamaConfig as TheirConfig
    from transformers import LlamaForCausalLM

    arguments = parse_arguments("fp32 decoding: Lamoid beside transformers")
    decoder = TorchDecoder(Llama(SMOLLM2).initialise(0))
    theirs = LlamaForCausalLM(TheirConfig(**config_to_hf(SMOLLM2))).eval()
    prompt = torch.tensor([PROMPT])

    def lamoid() -> float:
        logits = decoder.prefill([PROMPT])

        def go() -> None:
            nonlocal logits
            for _ in range(NEW_TOKENS):
                logits = decoder.step([int(logits[0].argmax())])

        return NEW_TOKENS / seconds(go)

    def transformers() -> float:
        settings = dict(do_sample=False, pad_token_id=0, eos_token_id=None)

        def go(n: int) -> float:
            return seconds(lambda: theirs.generate(prompt, min_new_tokens=n, max_new_tokens=n, **settings))

        return NEW_TOKENS / (go(NEW_TOKENS + 1) - go(1))

    rates = measure_in_turn({"lamoid": lamoid, "transformers": transformers}, arguments.rounds)
    n_bytes = sum(p.numel() * 4 for p in decoder.model.parameters())
    limit = memory_read_rate() / n_bytes
    median = sorted(rates["lamoid"])[len(rates["lamoid"]) // 2]
    facts = {
        "limit of memory": f"{limit:.0f} tokens/s ({n_bytes / 1e6:.0f} MB a token)",
        "share": f"{median / limit:.0%}",
    }
    report("decoding-smollm2-fp32", "tokens/s", rates, facts, arguments.out)


if __name__ == "__main__":
    main()
