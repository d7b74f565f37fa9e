"""What the tests ask of llama.cpp: open a file, tokens, logits, greedy text; and how it rounds activations."""

import contextlib
import ctypes
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

import llama_cpp
import numpy as np
import torch
from torch import Tensor, nn

from lamoid.checkpoints.conversion import open_model

CONTEXT = 1024
F32 = 0  # its number for the type of a cache, and of a file


@contextlib.contextmanager
def opened(file: Path, n_ctx: int = CONTEXT, **settings: object) -> Iterator[llama_cpp.Llama]:
    """A file in llama.cpp, with an F32 cache, on one thread."""
    model = llama_cpp.Llama(
        str(file),
        n_ctx=n_ctx,
        logits_all=True,
        type_k=F32,
        type_v=F32,
        n_threads=1,
        n_threads_batch=1,
        verbose=False,
        **settings,
    )
    try:
        yield model
    finally:
        model.close()


def logits(model: llama_cpp.Llama, ids: Sequence[int]) -> Tensor:
    """(T, V): the logits behind each of the ids, which begin a context."""
    model.reset()
    model.eval(ids)
    return torch.from_numpy(np.array(model.scores[: len(ids)]))


def greedy(model: llama_cpp.Llama, ids: Sequence[int], n_tokens: int) -> list[int]:
    """At most so many tokens, each the most likely one, up to the end of the text."""
    model.reset()
    going = model.generate(list(ids), temp=0.0, repeat_penalty=1.0)
    text: list[int] = []
    for token in islice(going, n_tokens):
        if token == model.token_eos():
            break
        text.append(token)
    return text


def write_in_f32(file: Path, target: Path) -> None:
    """The weights of a file as llama.cpp itself dequantizes them."""
    settings = llama_cpp.llama_model_quantize_default_params()
    settings.ftype, settings.allow_requantize, settings.nthread = F32, True, 1
    assert llama_cpp.llama_model_quantize(str(file).encode(), str(target).encode(), ctypes.byref(settings)) == 0


def assert_same_weights(file: Path, copy: Path) -> None:
    """The F32 copy of a file holds, to the bit, the numbers that we read from the file."""
    ours, theirs = open_model(file), open_model(copy)
    assert set(theirs.formats.values()) == {"F32"}
    for name in ours.shapes:
        for (_, a), (_, b) in zip(ours.blocks(name), theirs.blocks(name), strict=True):
            assert torch.equal(a.float(), b), name


@contextlib.contextmanager
def rounded_activations(model: nn.Module, formats: dict[str, str]) -> Iterator[None]:
    """Let every product round its input first, as llama.cpp does for a matrix of that format."""
    hooks = []
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear):
            kind = formats.get(f"{name}.weight", formats["embedding.weight"])
            hooks.append(module.register_forward_pre_hook(lambda _, args, kind=kind: (_round(args[0], kind),)))
    yield
    for hook in hooks:
        hook.remove()


def _round(x: Tensor, kind: str) -> Tensor:
    """What llama.cpp multiplies with a matrix of format `kind`: int8 in blocks of 32 where that is quantized."""
    if kind in ("F32", "F16", "BF16"):
        return x.to({"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}[kind]).float()
    blocks = x.unflatten(-1, (-1, 32))
    largest = blocks.abs().amax(dim=-1, keepdim=True)
    steps = torch.where(largest > 0, (blocks * (127 / largest)).round(), 0)
    return (steps * (largest / 127).half().float()).flatten(-2)
