"""`lamoid.generate`, and the samples that training prints."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lamoid.inference.generate import Completion
    from lamoid.models.decoders import DecoderModel
    from lamoid.tokenizers.tokenizer import Tokenizer


def generate(
    model: "DecoderModel", tokenizer: "Tokenizer", prompts: str | Sequence[str], **arguments: object
) -> "Completion | list[Completion]":
    """Continue one prompt or a batch; returns a Completion for each. Arguments as in `inference.generate.stream`."""
    from lamoid.inference import generate as loop
    from lamoid.inference.plain_decoder import decoder_for

    batch = [prompts] if isinstance(prompts, str) else list(prompts)
    completions = loop.generate(decoder_for(model), tokenizer, batch, **arguments)
    return completions[0] if isinstance(prompts, str) else completions


def sample(model: "DecoderModel", tokenizer: "Tokenizer", prompt: str, max_new_tokens: int = 48) -> str:
    """A short continuation on one line, to see a model learn; without a prompt it begins at the beginning of a text."""
    from lamoid.inference.generate import generate as complete
    from lamoid.inference.plain_decoder import decoder_for

    ids = tokenizer.encode(prompt)
    max_new_tokens = min(max_new_tokens, model.config.max_seq_len - len(ids))
    done = complete(decoder_for(model), tokenizer, [ids], max_new_tokens=max_new_tokens)[0]
    return " ".join((prompt + done.text).split())
