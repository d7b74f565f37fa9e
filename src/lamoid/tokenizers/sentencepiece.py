"""SentencePiece BPE, the tokenizer of Llama 1 and 2: training through the `sentencepiece` library, reading without it.

Symbols are characters, a space is written as `▁` (U+2581), and a character that the vocabulary lacks as its UTF-8
bytes. The file holds no merges but a score for each piece; the rule is: of all neighbours that together are a piece,
join those that make the one with the highest score. So every way to cut a piece into two pieces is a merge.
Source: Kudo and Richardson 2018; the settings: LLaMA (Touvron et al. 2023), section 2.1.
"""

import io
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain

import tokenizers as runtime
from tokenizers import decoders, models, normalizers

from lamoid.errors import DataError, MissingExtra, UsageError
from lamoid.tokenizers.sentencepiece_file import Pieces, read_pieces
from lamoid.tokenizers.tokenizer import Tokenizer, runtime_errors
from lamoid.tokenizers.vocabulary import (
    NATIVE_FILE,
    TokenType,
    check_tokens,
    check_types,
    every_cut,
    name_specials,
    special_and_user_defined,
    surround,
)

SPACE = "▁"
UNKNOWN_SURFACE = " \u2047 "
N_BYTES = 256
MAX_LINE_CHARACTERS = 2048  # longer lines are cut for training; sentencepiece would leave them out


def train_sentencepiece(
    texts: Iterable[str],
    vocab_size: int = 32_000,
    *,
    pad: bool = False,
    max_lines: int = 1_000_000,
    character_coverage: float = 0.99995,
    seed: int = 0,
) -> Tokenizer:
    """Learn a vocabulary of `vocab_size` pieces from the lines of the texts, or from `max_lines` drawn at random.

    The ids are `<unk> <s> </s>`, `<pad>` if wanted, 256 bytes, then the merges in their order, then characters by
    falling frequency, as many as it takes to cover a share of `character_coverage` of the text. Every digit is a piece
    of its own. Unlike Llama's own file nothing is put in front of a text, so that every text comes back as it was; and
    unlike in sentencepiece `▁` in a text is not a space but three bytes.
    Memory grows with `max_lines`, not with the texts. Raises MissingExtra without the library, UsageError for a size
    that the texts cannot fill or that their characters alone exceed.
    """
    if max_lines < 1:
        raise UsageError(f"max_lines is {max_lines}; it must be at least 1")
    try:
        import sentencepiece
    except ImportError as error:
        raise MissingExtra("sentencepiece", "sentencepiece") from error
    sentencepiece.set_random_generator_seed(seed)
    file = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=_lines(texts),
            model_writer=file,
            model_type="bpe",
            vocab_size=vocab_size,
            character_coverage=character_coverage,
            input_sentence_size=max_lines,
            max_sentence_length=4 * MAX_LINE_CHARACTERS,
            normalization_rule_name="identity",
            add_dummy_prefix=False,
            remove_extra_whitespaces=False,
            allow_whitespace_only_pieces=True,
            split_digits=True,
            byte_fallback=True,
            unk_id=0,
            bos_id=1,
            eos_id=2,
            pad_id=3 if pad else -1,
            num_threads=1,
            minloglevel=2,
        )
    except RuntimeError as error:
        reason = str(error).rpartition("] ")[2] or "the texts have no line to learn from"
        raise UsageError(f"vocab_size {vocab_size} cannot be learned from these texts: {reason}") from error
    return _build(read_pieces(file.getvalue()), file.getvalue(), underline_is_space=False)


def read_sentencepiece(data: bytes, *, add_bos: bool = True, add_eos: bool = False) -> Tokenizer:
    """The tokenizer of a SentencePiece file of type BPE; its ids are those of the library.

    Raises DataError for files that are malformed, of another type, or change the text by rules other than for spaces.
    Where two different pieces have the same score, sentencepiece joins the one further left, this one the one with
    the lower id: the runtime cannot rank two merges equally.
    """
    return _build(read_pieces(data), data, add_bos=add_bos, add_eos=add_eos)


def from_pieces(
    tokens: Sequence[str],
    scores: Sequence[float],
    types: Sequence[int],
    *,
    special_ids: Mapping[str, int],
    add_bos: bool = True,
    add_eos: bool = False,
    add_dummy_prefix: bool = True,
) -> Tokenizer:
    """A tokenizer from pieces in the order of their ids, as GGUF files of kind `llama` hold them.

    `types` are TokenType numbers; `special_ids` gives the id of each role, such as {"bos": 1, "eos": 2, "unk": 0}.
    They mean what llama.cpp makes of them: user-defined tokens are cut out of a text first, and each stretch between
    them gets the dummy prefix; after a SentencePiece file only the text as a whole gets it. Extra spaces are kept.
    Raises DataError for a vocabulary that contradicts itself.
    """
    pieces = Pieces(list(tokens), list(scores), list(types), dict(special_ids), add_dummy_prefix, False)
    return _build(pieces, None, add_bos=add_bos, add_eos=add_eos, cut_first=True)


def _build(
    pieces: Pieces,
    data: bytes | None,
    *,
    add_bos: bool = True,
    add_eos: bool = False,
    underline_is_space: bool = True,
    cut_first: bool = False,
) -> Tokenizer:
    tokens, scores = pieces.tokens, pieces.scores
    check_tokens(tokens)
    types = check_types(pieces.types, len(tokens))
    if len(scores) != len(tokens) or any(math.isnan(score) for score in scores):
        raise DataError(f"{len(scores)} scores for {len(tokens)} pieces; each piece has one, and it is a number")
    if not underline_is_space:
        # With its spaces written as themselves the vocabulary has no ▁, and a ▁ of the text falls back on its bytes.
        tokens = [token.replace(SPACE, " ") for token in tokens]
    specials = name_specials(tokens, pieces.special_ids)
    byte_fallback = _has_bytes(tokens, types)
    unknown = next((token for token, kind in zip(tokens, types, strict=True) if kind == TokenType.UNKNOWN), None)
    if unknown is None and not byte_fallback:
        raise DataError("the vocabulary has neither byte pieces nor an unknown piece; some texts would have no ids")
    special, user_defined = special_and_user_defined(tokens, types, specials)
    if unknown is not None and not byte_fallback:
        special.remove(unknown)  # it stands for characters of the text, so decoding must show it
    if any(len(token) == 1 for token in special):
        raise DataError("a special token is a single character, and texts could not have it; give it a longer name")
    with runtime_errors("the SentencePiece vocabulary makes no tokenizer"):
        model = models.BPE(
            vocab={token: index for index, token in enumerate(tokens)},
            merges=_merges(tokens, scores, types),
            unk_token=unknown,
            fuse_unk=True,
            byte_fallback=byte_fallback,
        )
        backend = runtime.Tokenizer(model)
    space = SPACE if underline_is_space else " "
    steps = list(_normalizers(pieces, [] if cut_first else user_defined, space))
    if steps:
        backend.normalizer = normalizers.Sequence(steps)
    backend.decoder = decoders.Sequence(list(_decoders(pieces, None if byte_fallback else unknown, space)))
    backend.add_special_tokens([runtime.AddedToken(token, special=True, normalized=False) for token in special])
    backend.add_tokens([runtime.AddedToken(token, special=False, normalized=not cut_first) for token in user_defined])
    surround(backend, specials, add_bos=add_bos, add_eos=add_eos)
    return Tokenizer(backend, specials, {NATIVE_FILE: data} if data is not None else None)


def _merges(tokens: Sequence[str], scores: Sequence[float], types: Sequence[TokenType]) -> list[tuple[str, str]]:
    """Every cut of a normal piece into two, by the score of the whole, highest first."""
    normal = [i for i, kind in enumerate(types) if kind == TokenType.NORMAL]
    pieces = [tokens[i] for i in sorted(normal, key=lambda i: (-scores[i], i))]
    return every_cut(pieces, set(pieces))


def _has_bytes(tokens: Sequence[str], types: Sequence[TokenType]) -> bool:
    pieces = {token for token, kind in zip(tokens, types, strict=True) if kind == TokenType.BYTE}
    if pieces and pieces != {f"<0x{byte:02X}>" for byte in range(N_BYTES)}:
        raise DataError(f"the vocabulary has {len(pieces)} byte pieces; it must have <0x00> to <0xFF>, or none")
    return bool(pieces)


def _normalizers(pieces: Pieces, user_defined: Sequence[str], space: str) -> Iterator[normalizers.Normalizer]:
    """What happens to a text first. The runtime does the same to user-defined tokens before it looks for them."""
    if pieces.remove_extra_whitespaces:
        yield normalizers.Replace(runtime.Regex(rf"\A +|[ {SPACE}]+\z"), "")
        yield normalizers.Replace(runtime.Regex(r" {2,}"), " ")
    if pieces.add_dummy_prefix and user_defined:
        # A prefix on the tokens themselves would hide them from the text; so a text that is one of them has none.
        alone = "|".join(re.escape(token) for token in user_defined)
        yield normalizers.Replace(runtime.Regex(rf"\A(?!(?:{alone})\z)(?=[\s\S])"), space)
    elif pieces.add_dummy_prefix:
        yield normalizers.Prepend(space)
    if space != " ":
        yield normalizers.Replace(" ", space)


def _decoders(pieces: Pieces, unknown: str | None, space: str) -> Iterator[decoders.Decoder]:
    if unknown is not None:
        yield decoders.Replace(unknown, UNKNOWN_SURFACE)
    if space != " ":
        yield decoders.Replace(space, " ")
    yield decoders.ByteFallback()
    yield decoders.Fuse()
    if pieces.remove_extra_whitespaces:
        yield decoders.Replace(runtime.Regex(r"\A +"), "")
    elif pieces.add_dummy_prefix:
        yield decoders.Strip(" ", left=1)


def _lines(texts: Iterable[str]) -> Iterator[str]:
    """Lines short enough to be learned from; line ends are always bytes, as in Llama."""
    for line in chain.from_iterable(text.split("\n") for text in texts):
        for start in range(0, len(line), MAX_LINE_CHARACTERS):
            yield line[start : start + MAX_LINE_CHARACTERS].encode("utf-8", "replace").decode()
