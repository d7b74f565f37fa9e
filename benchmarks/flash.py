"""Peak memory of attention, forward and backward, over the length: tiles beside the explicit and the fused path.

python -m benchmarks.flash --out docs/proofs

Each case runs in a process of its own; what the process holds before the attention is measured too and taken off.
"""

from functools import partial

import torch

from benchmarks.pairs import parse_arguments, peak_memory_bytes, write_proof
from lamoid.nn.attention import PATHS
from lamoid.nn.relative_positions import ALiBi, T5Bias

LENGTHS = (1024, 2048, 4096, 8192, 16_384)
EXPLICIT_LENGTHS = LENGTHS[:4]  # 16,384 would take more than 10 GB
N_HEADS, HEAD_DIM = 2, 64
CASES = {
    "tiled, causal": ("tiled", None),
    "tiled, causal, ALiBi": ("tiled", "alibi"),
    "tiled, causal, T5": ("tiled", "t5"),
    "explicit, causal": ("explicit", None),
    "fused, causal": ("fused", None),
}


def run(path: str, bias_kind: str | None, length: int, threads: int, *, attend: bool = True) -> None:
    """One forward and backward pass; without `attend`, only the inputs and their gradients are there."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    inputs = [torch.randn(1, N_HEADS, length, HEAD_DIM, requires_grad=True) for _ in range(3)]
    bias = {None: None, "alibi": ALiBi(N_HEADS), "t5": T5Bias(N_HEADS)}[bias_kind]

    out = PATHS[path](*inputs, None, bias=bias) if attend else sum(inputs)
    out.sum().backward()


def main() -> None:
    arguments = parse_arguments("memory of attention over the length")
    cases: dict[str, dict[str, float]] = {}
    for name, (path, bias) in CASES.items():
        cases[name] = {}
        for length in EXPLICIT_LENGTHS if path == "explicit" else LENGTHS:
            settings = (path, bias, length, arguments.threads)
            before = peak_memory_bytes(partial(run, *settings, attend=False))
            peak = peak_memory_bytes(partial(run, *settings))
            cases[name][str(length)] = round((peak - before) / 1e6, 1)
            print(f"{name:<22}{length:>7}{(peak - before) / 1e6:10.1f} MB", flush=True)
    what = f"forward and backward, {N_HEADS} heads of {HEAD_DIM}, fp32: MB beyond inputs and gradients, over the length"
    write_proof("flash", {"what": what, "cases": cases}, arguments.out)


if __name__ == "__main__":
    main()
