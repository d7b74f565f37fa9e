"""Which engine decodes: the native one where it applies, torch where not, and one line that says so."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from lamoid.errors import DataError, EngineUnavailable, UsageError
from lamoid.recipes.adapted import merged_weights
from lamoid.recipes.load import find_tokenizer, is_gguf, load_decoder, resolve, set_threads
from lamoid.tokenizers.tokenizer import TOKENIZER_FILE, Tokenizer

if TYPE_CHECKING:
    from lamoid.inference.engine import NativeDecoder
    from lamoid.inference.generate import Decoder

ENGINES = ("auto", "native", "torch")


def load_engine(path: str | Path, *, threads: int | None = None) -> "tuple[NativeDecoder, Tokenizer | None]":
    """The native engine with the model of a GGUF file, a Hugging Face directory or a fetched model, and its tokenizer.

    No torch is imported, but for a LoRA, which is merged into its base in memory. Of a fetched model that has a GGUF file,
    that file is taken. Raises EngineUnavailable with the reason where the engine cannot run it, and CheckpointError or
    DataError naming the file or field that is wrong.
    """
    from lamoid.checkpoints.gguf import read_gguf
    from lamoid.checkpoints.store import is_adapter
    from lamoid.inference.engine import NativeDecoder, NativeModel
    from lamoid.inference.native.library import Team, give_back_memory
    from lamoid.inference.weights import weights_of_directory, weights_of_gguf
    from lamoid.tokenizers.gguf_vocabulary import tokenizer_from_gguf

    if threads is not None and threads < 1:
        raise UsageError(f"threads is {threads}; at least 1 is needed")
    found = resolve(path)
    team, file = Team(threads), found if is_gguf(found) else _gguf_inside(found)
    if is_adapter(found):
        set_threads(threads)
        weights, tokenizer = merged_weights(found)
    elif file is None:
        weights, tokenizer = weights_of_directory(found), find_tokenizer(found)
    else:
        opened = read_gguf(file)
        weights = weights_of_gguf(opened)
        tokenizer = tokenizer_from_gguf(opened.metadata)
        del opened
    if tokenizer is not None and tokenizer.vocab_size > weights.config.vocab_size:
        raise DataError(
            f"{path}: the tokenizer has {tokenizer.vocab_size} ids, the model only {weights.config.vocab_size}; "
            f"they do not belong together"
        )
    decoder = NativeDecoder(NativeModel(weights, team))
    give_back_memory()
    return decoder, tokenizer


def open_decoder(
    path: str | Path, engine: str, threads: int | None, notify: Callable[[str], object], *, speculate: bool = False
) -> "tuple[Decoder, Tokenizer]":
    """A decoder and a tokenizer for a verb that writes text, and a line on what decodes where someone watches.

    `engine` is one of ENGINES; `auto` takes torch, and always says why, where the native engine is not available.
    """
    if engine != "torch":
        try:
            decoder, tokenizer = load_engine(path, threads=threads)
        except EngineUnavailable as error:
            if engine == "native" or speculate:
                raise
            notify(f"note: torch decodes, not the native engine: {error}")
        else:
            if tokenizer is None:
                raise DataError(f"{path} has no tokenizer; put a {TOKENIZER_FILE} beside the model")
            team = decoder.model.team
            kinds = ", ".join(sorted({t.type_name for t in decoder.model.weights.tensors.values() if len(t.shape) > 1}))
            if sys.stderr.isatty():  # as the speed of generating: not where only a program reads it
                notify(f"note: the native engine decodes {kinds} weights ({team.path}, {team.n_threads} threads)")
            return _speculating(decoder) if speculate else decoder, tokenizer
    if speculate:
        raise UsageError("--speculate works with the native engine alone; leave it out, or take --engine native")
    from lamoid.inference.decoder import TorchDecoder
    from lamoid.inference.plain_decoder import decoder_for
    from lamoid.models.llama import Llama

    model, tokenizer = load_decoder(path, threads)
    return TorchDecoder(model, keep_cache=True) if isinstance(model, Llama) else decoder_for(model), tokenizer


def _speculating(decoder: "NativeDecoder") -> "Decoder":
    from lamoid.inference.speculation import SpeculatingDecoder

    return SpeculatingDecoder(decoder)


def _gguf_inside(directory: Path) -> Path | None:
    """The GGUF file of a fetched model that has one; it is smaller than the directory's float32 weights."""
    from lamoid.recipes.catalogue import FACTS_FILE

    files = sorted(directory.glob("*.gguf")) if (directory / FACTS_FILE).is_file() else []
    return files[0] if len(files) == 1 else None
