"""WordPiece, BERT's tokenizer: training, `vocab.txt` read and written, and the cut of a word step by step.

A word becomes the longest token that it begins with, then the longest `##token` that the rest begins with, and so on;
a word of which some rest begins with none is `[UNK]` as a whole. Training joins frequent pairs as BPE does.
Source: Wu et al. 2016, section 4.1; Devlin et al. 2019, section 3; the split into words: BERT's tokenization.py.
"""

import json
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import tokenizers as runtime
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

from lamoid.errors import DataError, UsageError
from lamoid.tokenizers.tokenizer import Tokenizer, runtime_errors
from lamoid.tokenizers.vocabulary import MAX_FILE_BYTES, check_tokens

VOCAB_FILE = "vocab.txt"
SPECIALS = {"pad": "[PAD]", "unk": "[UNK]", "cls": "[CLS]", "sep": "[SEP]", "mask": "[MASK]"}
CONTINUES = "##"


def train_wordpiece(texts: Iterable[str], vocab_size: int, *, cased: bool = False) -> Tokenizer:
    """Learn a vocabulary of at most `vocab_size` tokens: the special ones, characters, `##characters`, joined ones.

    Characters take at most half of it, the most frequent first; a word with another one is `[UNK]`. The texts are held
    in memory as UTF-8. The same texts give the same ids: the runtime alone would number `##characters` by chance.
    """
    most = (vocab_size - len(SPECIALS)) // 2
    if most < 1:
        raise UsageError(f"vocab_size is {vocab_size}; the special tokens and one character need {len(SPECIALS) + 2}")
    held = [text.encode() for text in texts]  # a string may take four bytes a character
    backend = _bert({token: index for index, token in enumerate(SPECIALS.values())}, lowercase=not cased)
    characters, continuing = _alphabet((raw.decode() for raw in held), backend, most)
    alphabet = [*SPECIALS.values(), *characters, *(CONTINUES + c for c in continuing)]
    learner = runtime.Tokenizer(models.WordPiece(unk_token=SPECIALS["unk"]))
    learner.normalizer, learner.pre_tokenizer = backend.normalizer, backend.pre_tokenizer
    trainer = trainers.WordPieceTrainer(
        vocab_size=vocab_size,
        special_tokens=alphabet,
        initial_alphabet=characters,
        limit_alphabet=len(characters),
        continuing_subword_prefix=CONTINUES,
        show_progress=False,
    )
    learner.train_from_iterator((raw.decode() for raw in held), trainer)
    ids = learner.get_vocab(with_added_tokens=False)
    return read_wordpiece("".join(f"{t}\n" for t in sorted(ids, key=ids.__getitem__)).encode(), lowercase=not cased)


def _alphabet(texts: Iterable[str], backend: runtime.Tokenizer, most: int) -> tuple[list[str], list[str]]:
    """The `most` most frequent characters, and those of them that stand inside words; both by code point."""
    counts: Counter[str] = Counter()
    pieces: set[str] = set()
    for text in texts:
        normal = backend.normalizer.normalize_str(text)
        counts.update(normal)
        pieces.update(normal.split())
    inside = {c for piece in pieces for word, _ in backend.pre_tokenizer.pre_tokenize_str(piece) for c in word[1:]}
    seen = (c for c in counts if not c.isspace())
    characters = sorted(sorted(seen, key=lambda c: (-counts[c], c))[:most])
    return characters, [c for c in characters if c in inside]


def read_wordpiece(
    data: bytes, *, lowercase: bool | None = None, strip_accents: bool | None = None, split_chinese: bool = True
) -> Tokenizer:
    """The tokenizer of a `vocab.txt`: one token a line, its line its id.

    `lowercase` None: unless a token has a capital letter. `strip_accents` None: where it is lowercase, as in BERT.
    `split_chinese` makes every Chinese character a word. Raises DataError for a file that is no vocabulary of BERT's.
    """
    if len(data) > MAX_FILE_BYTES:
        raise DataError(f"the file has {len(data)} bytes; a {VOCAB_FILE} has at most {MAX_FILE_BYTES}")
    try:
        text = data.decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        raise DataError(f"the file is not UTF-8 at offset {error.start}") from error
    tokens = text.removesuffix("\n").split("\n")
    check_tokens(tokens)
    missing = [token for token in SPECIALS.values() if token not in tokens]
    if missing:
        raise DataError(f"the special tokens {', '.join(missing)} are missing; add a line for each")
    if lowercase is None:
        lowercase = not any(token != token.lower() for token in tokens if not token.startswith("["))
    vocabulary = {token: index for index, token in enumerate(tokens)}
    backend = _bert(vocabulary, lowercase=lowercase, strip_accents=strip_accents, split_chinese=split_chinese)
    return Tokenizer(backend, SPECIALS, {VOCAB_FILE: data})


def _bert(
    vocabulary: dict[str, int], *, lowercase: bool, strip_accents: bool | None = None, split_chinese: bool = True
) -> runtime.Tokenizer:
    """The runtime as BERT has it: [CLS] A [SEP] with segment 0, B [SEP] with segment 1."""
    with runtime_errors("the vocabulary makes no tokenizer"):
        backend = runtime.Tokenizer(
            models.WordPiece(vocab=vocabulary, unk_token=SPECIALS["unk"], continuing_subword_prefix=CONTINUES)
        )
    backend.normalizer = normalizers.BertNormalizer(
        clean_text=True, handle_chinese_chars=split_chinese, strip_accents=strip_accents, lowercase=lowercase
    )
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece(prefix=CONTINUES)
    backend.add_special_tokens([runtime.AddedToken(t, special=True, normalized=False) for t in SPECIALS.values()])
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS]:0 $A:0 [SEP]:0",
        pair="[CLS]:0 $A:0 [SEP]:0 $B:1 [SEP]:1",
        special_tokens=[(token, vocabulary[token]) for token in (SPECIALS["cls"], SPECIALS["sep"])],
    )
    return backend


@dataclass(frozen=True)
class Match:
    """One step: the longer beginnings that are no token, the token found (None: the word is unknown), what is left."""

    tried: tuple[str, ...]
    token: str | None
    rest: str


def match_steps(tokenizer: Tokenizer, text: str) -> Iterator[tuple[str, list[Match]]]:
    """Each word of the text, as lowercase and accents leave it, and the matches that cut it into tokens.

    The rule: take the longest beginning of the rest that is a token, with `##` in front of it inside the word.
    """
    model = json.loads(tokenizer.backend.to_str())["model"]
    if model["type"] != "WordPiece":
        raise UsageError(f"this tokenizer is a {model['type']}; only WordPiece works by longest matches")
    prefix, longest = model["continuing_subword_prefix"], model["max_input_chars_per_word"]
    normal = tokenizer.backend.normalizer.normalize_str(text) if tokenizer.backend.normalizer else text
    for word, _ in tokenizer.backend.pre_tokenizer.pre_tokenize_str(normal):
        unknown = [Match((), None, word)]
        yield word, unknown if len(word) > longest else list(_matches(word, model["vocab"], prefix))


def _matches(word: str, vocabulary: dict[str, int], prefix: str) -> Iterator[Match]:
    start = 0
    while start < len(word):
        candidates = [(prefix if start else "") + word[start:end] for end in range(len(word), start, -1)]
        found = next((place for place, candidate in enumerate(candidates) if candidate in vocabulary), None)
        if found is None:
            yield Match(tuple(candidates), None, word[start:])
            return
        start = len(word) - found
        yield Match(tuple(candidates[:found]), candidates[found], word[start:])
