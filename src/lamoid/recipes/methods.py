"""The methods of fine-tuning: what each trains of a model, at what rate, and how the result lies on disk."""

from pathlib import Path

import torch
from torch import Tensor, nn

from lamoid.adapt.adapters import AdapterConfig, add_adapters
from lamoid.adapt.lora import LoraConfig, add_lora
from lamoid.adapt.nf4 import Nf4Config, quantize_base
from lamoid.checkpoints.hf import read_model
from lamoid.checkpoints.peft import by_our_names, read_adapter, write_adapter
from lamoid.recipes.adapted import check_base
from lamoid.recipes.resume import Form, whole_model
from lamoid.recipes.settings import FinetuneSettings
from lamoid.tokenizers.tokenizer import Tokenizer

LEARNING_RATES = {"full": 5e-5, "lora": 5e-4, "qlora": 5e-4, "houlsby": 1e-3}
"""Where none is given. What begins at zero may learn ten times faster than weights that know something already."""


def adapt(model: nn.Module, s: FinetuneSettings) -> None:
    """Change a model in place into one whose trainable parameters are those of the method; the seed decides the new ones.

    Raises UsageError where nothing would be trainable, or for settings out of range.
    """
    torch.manual_seed(s.seed)
    model.to(getattr(torch, s.dtype))
    if s.method == "full":
        return
    if s.method == "houlsby":
        add_adapters(model, AdapterConfig(s.bottleneck, seed=s.seed))
        return
    if s.method == "qlora":
        quantize_base(model, Nf4Config(compute_dtype=s.dtype))
    add_lora(model, LoraConfig(s.rank, s.alpha, s.dropout, s.rslora, tuple(s.targets), s.seed))


def form_of(method: str | None, model: nn.Module, tokenizer: Tokenizer, origin: Path) -> Form:
    """All weights where all are trained; otherwise a PEFT directory that names the model it stands on, `origin`."""
    if method == "full":
        return whole_model(model, tokenizer)

    def read(folder: Path) -> dict[str, Tensor]:
        saved = read_adapter(folder)
        check_base(saved, origin, read_model(origin))
        return by_our_names(model, saved.tensors)

    return Form(lambda folder: write_adapter(folder, model, tokenizer, origin), read)


def describe(model: nn.Module) -> str:
    """How many parameters are trained, and their share."""
    n_all = sum(p.numel() for p in model.parameters())
    n_trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return f"{n_trained:,} of {n_all:,} parameters are trained ({n_trained / n_all:.2%})"
