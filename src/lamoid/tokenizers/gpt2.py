"""Byte-level BPE in the files of GPT-2 and RoBERTa: `vocab.json` (token -> id) and `merges.txt` (one merge a line).

The two share the split into words and differ in their special tokens: GPT-2 has `<|endoftext|>` alone and puts
nothing around a text; RoBERTa writes `<s> A </s>` and, for pairs, `<s> A </s></s> B </s>`, all of one segment.
Source: Radford et al. 2019, section 2.2; Liu et al. 2019, section 4.4.
"""

import json
from collections.abc import Iterable

import tokenizers as runtime
from tokenizers import decoders, models, pre_tokenizers, processors

from lamoid.errors import DataError, UsageError
from lamoid.tokenizers.bpe import N_BYTES, learn_merges
from lamoid.tokenizers.byte_level import check_merges
from lamoid.tokenizers.tokenizer import Tokenizer, runtime_errors
from lamoid.tokenizers.vocabulary import MAX_FILE_BYTES, check_tokens

VOCAB_FILE, MERGES_FILE = "vocab.json", "merges.txt"
GPT2_SPECIALS = {role: "<|endoftext|>" for role in ("bos", "eos", "unk")}
ROBERTA_SPECIALS = {
    **{"bos": "<s>", "eos": "</s>", "pad": "<pad>", "unk": "<unk>"},
    **{"cls": "<s>", "sep": "</s>", "mask": "<mask>"},
}
_HEADER = "#version: 0.2"


def train_gpt2(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """GPT-2's: the 256 bytes, the merges in their order, `<|endoftext|>`."""
    return _train(texts, vocab_size, [], ["<|endoftext|>"])


def train_roberta(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """RoBERTa's: `<s> <pad> </s> <unk>`, the 256 bytes, the merges in their order, `<mask>`."""
    return _train(texts, vocab_size, ["<s>", "<pad>", "</s>", "<unk>"], ["<mask>"])


def _train(texts: Iterable[str], vocab_size: int, before: list[str], after: list[str]) -> Tokenizer:
    n_learned = vocab_size - len(before) - len(after)
    if n_learned < N_BYTES:
        lowest = N_BYTES + len(before) + len(after)
        raise UsageError(f"vocab_size is {vocab_size}; the bytes and the special tokens alone need {lowest}")
    model = json.loads(learn_merges(texts, n_learned, _words()).to_str())["model"]
    learned = sorted(model["vocab"], key=model["vocab"].__getitem__)
    vocabulary = {token: index for index, token in enumerate([*before, *learned, *after])}
    lines = [_HEADER, *(" ".join(merge) for merge in model["merges"])]
    return read_gpt2(json.dumps(vocabulary, ensure_ascii=False).encode(), ("\n".join(lines) + "\n").encode())


def read_gpt2(vocab: bytes, merges: bytes) -> Tokenizer:
    """The tokenizer of a `vocab.json` and its `merges.txt`: RoBERTa's where it has a `<mask>`, else GPT-2's.

    Raises DataError for files that are malformed, contradict each other, or lack the special tokens of both.
    """
    vocabulary = _read_vocabulary(vocab)
    specials = ROBERTA_SPECIALS if ROBERTA_SPECIALS["mask"] in vocabulary else GPT2_SPECIALS
    missing = sorted(set(specials.values()) - set(vocabulary))
    if missing:
        raise DataError(f"{VOCAB_FILE} lacks the special tokens {', '.join(missing)}; add them")
    pairs = check_merges(_read_merges(merges), set(vocabulary) - set(specials.values()))
    with runtime_errors("the vocabulary with its merges makes no tokenizer"):
        backend = runtime.Tokenizer(models.BPE(vocab=vocabulary, merges=pairs))
    backend.pre_tokenizer, backend.decoder = _words(), decoders.ByteLevel()
    tokens = [runtime.AddedToken(t, special=True, normalized=False, lstrip=t == "<mask>") for t in specials.values()]
    backend.add_special_tokens(tokens)
    if specials is ROBERTA_SPECIALS:
        begin, end = ((token, vocabulary[token]) for token in ("<s>", "</s>"))
        backend.post_processor = processors.RobertaProcessing(end, begin, trim_offsets=True, add_prefix_space=False)
    return Tokenizer(backend, specials, {VOCAB_FILE: vocab, MERGES_FILE: merges})


def _words() -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)


def _read_vocabulary(data: bytes) -> dict[str, int]:
    _check_size(VOCAB_FILE, data)
    try:
        vocabulary = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{VOCAB_FILE} is not JSON: {error}") from error
    if not isinstance(vocabulary, dict) or not all(type(index) is int for index in vocabulary.values()):
        raise DataError(f"{VOCAB_FILE} must be one JSON object that gives each token its id")
    token_of_id = {index: token for token, index in vocabulary.items()}
    if sorted(token_of_id) != list(range(len(vocabulary))):
        raise DataError(f"{VOCAB_FILE} has {len(vocabulary)} tokens; their ids must be 0 to {len(vocabulary) - 1}")
    check_tokens([token_of_id[index] for index in range(len(vocabulary))])
    return vocabulary


def _read_merges(data: bytes) -> list[str]:
    _check_size(MERGES_FILE, data)
    try:
        lines = data.decode("utf-8-sig").replace("\r\n", "\n").split("\n")
    except UnicodeDecodeError as error:
        raise DataError(f"{MERGES_FILE} is not UTF-8 at offset {error.start}") from error
    return [line for number, line in enumerate(lines) if line and not (number == 0 and line.startswith("#version"))]


def _check_size(name: str, data: bytes) -> None:
    if len(data) > MAX_FILE_BYTES:
        raise DataError(f"the {name} has {len(data)} bytes; at most {MAX_FILE_BYTES} are read")
