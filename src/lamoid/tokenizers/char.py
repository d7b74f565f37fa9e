"""The simplest tokenizer: one id for each character that the training text has.

A character that it lacks is written as its UTF-8 bytes, so that every text survives the round trip.
"""

from collections import Counter
from collections.abc import Iterable

import tokenizers as runtime
from tokenizers import decoders, models, pre_tokenizers

from lamoid.errors import UsageError
from lamoid.tokenizers.bpe import N_BYTES, SPECIAL_TOKENS, finish
from lamoid.tokenizers.tokenizer import Tokenizer


def train_char(texts: Iterable[str], vocab_size: int | None = None) -> Tokenizer:
    """Give an id to every character of the texts, or to the most frequent ones that fit into `vocab_size`.

    The ids are 256 bytes, then characters by falling frequency (ties by code point), then the special tokens.
    """
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(text)
    characters = sorted(counts, key=lambda c: (-counts[c], c))
    if vocab_size is not None:
        lowest = N_BYTES + len(SPECIAL_TOKENS)
        if vocab_size < lowest:
            raise UsageError(f"vocab_size is {vocab_size}; the bytes and the special tokens alone need {lowest}")
        characters = characters[: vocab_size - lowest]
    symbols = [f"<0x{byte:02X}>" for byte in range(N_BYTES)] + characters
    model = models.BPE(vocab={s: i for i, s in enumerate(symbols)}, merges=[], byte_fallback=True, unk_token=None)
    backend = runtime.Tokenizer(model)
    backend.pre_tokenizer = pre_tokenizers.Split(runtime.Regex(r"[\s\S]"), behavior="isolated")
    backend.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    return finish(backend)
