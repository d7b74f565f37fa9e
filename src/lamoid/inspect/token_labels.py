"""Tokens as one can show them: one line each, in any script, and bytes where a token is no text by itself."""

import re
import unicodedata

from lamoid.inspect.batch_picture import visible
from lamoid.tokenizers.bpe import BYTE_OF_SYMBOL
from lamoid.tokenizers.sentencepiece import SPACE
from lamoid.tokenizers.tokenizer import Tokenizer

_BYTE_TOKEN = re.compile(r"<0x([0-9A-F]{2})>")
_STRAY = re.compile("([\udc80-\udcff]+)")  # what "surrogateescape" makes of bytes that are no UTF-8
_UNSEEN = ("Cf", "Cn", "Co", "Zl", "Zp", "Zs")


class TokenLabels:
    """Each id as its text: spaces as ␣, line ends as ⏎, what cannot be seen as escapes, special tokens by name.

    Bytes that are no text by themselves, such as a third of a Chinese character, are hexadecimal: ‹E5›. An id that
    the tokenizer does not have (models have more rows than tokens, at times) is its number: ‹id 49151›.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.backend = tokenizer.backend
        self.special = {i for i, token in self.backend.get_added_tokens_decoder().items() if token.special}
        self.is_byte_level = self.backend.decoder is not None and self.backend.decoder.decode(["Ġ"]) == " "

    def __call__(self, index: int) -> str:
        token = self.backend.id_to_token(index)
        if token is None:
            return f"‹id {index}›"
        if index in self.special:
            return _on_one_line(token)
        return "".join(map(_shown, _pieces(token, self.is_byte_level)))


def _pieces(token: str, is_byte_level: bool) -> list[str | bytes]:
    """The text of one token of the vocabulary, with the bytes that are no text apart."""
    if is_byte_level and all(symbol in BYTE_OF_SYMBOL for symbol in token):
        raw = bytes(BYTE_OF_SYMBOL[symbol] for symbol in token)
    elif byte := _BYTE_TOKEN.fullmatch(token):
        raw = bytes.fromhex(byte[1])
    else:
        return [token.replace(SPACE, " ")]
    parts = _STRAY.split(raw.decode("utf-8", "surrogateescape"))
    return [part.encode("utf-8", "surrogateescape") if _STRAY.match(part) else part for part in parts if part]


def _shown(piece: str | bytes) -> str:
    """Text in which everything can be seen; a mark that sits on a letter gets a dotted circle to sit on."""
    if isinstance(piece, bytes):
        return f"‹{piece.hex(' ').upper()}›"
    if all(unicodedata.category(c) in _UNSEEN and c != " " for c in piece):
        return piece.encode("unicode_escape").decode()
    on_circle = f"◌{piece}" if unicodedata.category(piece[0]).startswith("M") else piece
    return _on_one_line(on_circle).replace(" ", "␣")


def _on_one_line(text: str) -> str:
    return visible(text).replace("⏎\n", "⏎").replace("\t", "⇥")
