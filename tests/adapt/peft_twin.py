"""The same model, LoRA and steps in transformers, peft and bitsandbytes."""

import warnings
from pathlib import Path
from typing import Any

import peft
import torch
import transformers
from torch import Tensor, nn


def peft_model(base: Path, *, nf4: bool = False, **settings: Any) -> nn.Module:
    """A base in fp32 (`nf4`: in bitsandbytes' 4 bits) with peft's LoRA, in training mode."""
    arguments: dict[str, Any] = {"dtype": torch.float32}
    if nf4:
        arguments["device_map"] = "cpu"
        arguments["quantization_config"] = transformers.BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True
        )
    theirs = transformers.AutoModelForCausalLM.from_pretrained(base, **arguments)
    for module in theirs.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False  # some CPUs would compute in bfloat16 whatever was asked for
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # peft uses what transformers calls deprecated, and warns of tied embeddings
        return peft.get_peft_model(theirs, peft.LoraConfig(**settings)).train()


def save(model: nn.Module, directory: Path, base: Path) -> Path:
    """Write the adapter as peft does."""
    model.peft_config["default"].base_model_name_or_path = str(base)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.save_pretrained(directory)
    return directory


def open_in_peft(base: nn.Module, directory: Path) -> nn.Module:
    """Put an adapter on a base of transformers, as peft does."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # see above; what peft has to say about the files stays an error
        return peft.PeftModel.from_pretrained(base, directory).eval()


def losses(model: nn.Module, rows: Tensor, *, rate: float = 1e-3) -> list[float]:
    """Mean loss before each step of AdamW, one row of ids a step; dropout is drawn from the step's seed."""
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=rate)
    found = []
    for step, row in enumerate(rows):
        torch.manual_seed(step)
        out = model(row[None])
        logits = (out if isinstance(out, Tensor) else out.logits)[0]
        loss = nn.functional.cross_entropy(logits[:-1], row[1:])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        found.append(loss.item())
    return found
