"""`lamoid generate` with a Transformer: from a source to its target."""

import json
import time
from dataclasses import fields
from typing import TYPE_CHECKING

import torch

from lamoid.errors import DataError, UsageError
from lamoid.models.transformer import Transformer
from lamoid.recipes.load import load, set_threads
from lamoid.recipes.settings import GenerationSettings
from lamoid.recipes.translate import decode_sources
from lamoid.tokenizers.tokenizer import TOKENIZER_FILE

if TYPE_CHECKING:
    from lamoid.recipes.generate import Recipe

NOT_FOR_BEAMS = {field.name for field in fields(GenerationSettings)} - {"threads", "engine"}


def translate_prompt(r: "Recipe", prompt: str) -> int:
    """Print the target of the prompt; returns the exit code.

    Raises UsageError for settings of sampling, for an empty prompt, and for one that is longer than the model's context.
    """
    for field in fields(GenerationSettings):
        value = getattr(r, field.name)
        is_default = value == (field.default_factory() if callable(field.default_factory) else field.default)
        if (field.name in NOT_FOR_BEAMS and not is_default) or value == "native":
            raise UsageError(
                f"{field.name} is {value!r}, but a Transformer takes the most likely target, greedily or with --beams; "
                f"leave out --{field.name.replace('_', '-')}"
            )
    set_threads(r.threads)
    model, tokenizer = load(r.model, dtype=torch.float32)
    assert isinstance(model, Transformer)
    if tokenizer is None or tokenizer.vocab_size > model.config.vocab_size:
        raise DataError(f"{r.model} has no tokenizer that fits it; put its {TOKENIZER_FILE} beside the model")
    if not prompt.strip():
        raise UsageError("the prompt is empty; give the text to translate")
    source = [*tokenizer.encode(prompt.strip(), add_special_tokens=False), model.config.eos_id]
    if len(source) > model.config.max_seq_len:
        raise UsageError(f"the prompt has {len(source)} tokens; the model reads at most {model.config.max_seq_len}")
    began = time.perf_counter()
    found = decode_sources(model.eval(), [source], r.beams, r.max_new_tokens)[0]
    text = tokenizer.decode(found.ids)
    if r.json:
        reason = "end" if found.ended else "length"
        facts = {"prompt": prompt, "text": text, "ids": found.ids, "log_probability": found.log_probability}
        facts |= {"finish_reason": reason, "seconds": time.perf_counter() - began}
        print(json.dumps(facts, ensure_ascii=False))
    else:
        print(text)
    return 0
