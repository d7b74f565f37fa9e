"""What people get wrong in the data of a fine-tuning, seen in one batch."""

import re
from collections.abc import Iterator

from lamoid.errors import LamoidError
from lamoid.inspect.batch_view import BatchView, Document, Token
from lamoid.tokenizers.chat import ChatEncoder
from lamoid.tokenizers.tokenizer import Tokenizer

_CHAT_MARKS = re.compile(
    r"<\|im_start\|>|<\|start_header_id\|>|<\|user\|>|<start_of_turn>|\[INST\]|^### (?:Instruction|Response):"
    r"|^(?:User|Human|Assistant): ",
    re.MULTILINE,
)


def find_warnings(view: BatchView, tokenizer: Tokenizer, encoder: ChatEncoder | None = None) -> list[str]:
    """What looks wrong, each once with the place where it was first seen.

    A batch or document without a trained token; an answer whose end is not trained; a doubled begin-of-text token; a chat
    template that leaves out the system message; a prompt, or text of the template, that is trained; plain text that
    is a chat. `encoder` is the chat format, if the batch was made with one.
    """
    found: dict[str, list[str]] = {}
    if not view.count("trained"):
        found["no token of this batch is trained: it changes nothing"] = []
    if view.sees_all and tokenizer.special_id("bos") is None and tokenizer.special_id("eos") is None:
        found["the tokenizer has no begin- or end-of-text token: documents cannot be told apart"] = []
    for document in view.documents:
        tokens = view.rows[document.row][document.start : document.end]
        for warning, detail in _of_document(document, tokens, tokenizer, encoder):
            found.setdefault(warning, []).append(_place(document) + detail)
    return [_said(warning, places) for warning, places in found.items()]


def _place(document: Document) -> str:
    source = f" ({document.source})" if document.source else ""
    return f"row {document.row + 1}, document {document.number + 1}{source}"


def _said(warning: str, places: list[str]) -> str:
    more = f", and {len(places) - 1} more like it" if len(places) > 1 else ""
    return f"{warning} (first in {places[0]}{more})" if places else warning


def _of_document(
    document: Document, tokens: list[Token], tokenizer: Tokenizer, encoder: ChatEncoder | None
) -> Iterator[tuple[str, str]]:
    """Warnings, each with what there is to say about this document in particular."""
    if not document.n_trained and len(tokens) > 1:
        yield "a document has no trained token", ""
    begin = tokenizer.special_id("bos")
    pairs = zip(tokens, tokens[1:], strict=False)
    if begin is not None and begin != tokenizer.special_id("eos") and any(a.id == b.id == begin for a, b in pairs):
        yield (
            f"{tokenizer.specials['bos']} stands twice: the template and the text, or two others, both put it there",
            "",
        )
    if document.example is None:
        return
    if document.example.conversation.format != "text":
        yield from _of_chat(document, tokens, tokenizer, encoder)
        return
    if not document.cut and not tokens[-1].is_special:
        yield "no end-of-text token stands behind a text: the model will not learn to stop", ""
    mark = _CHAT_MARKS.search("".join(token.text for token in tokens if not token.is_special))
    if mark:
        yield (
            "plain text looks like a chat: every token of it is trained, the prompts too; use messages instead",
            f": {mark[0].strip()}",
        )


def _of_chat(
    document: Document, tokens: list[Token], tokenizer: Tokenizer, encoder: ChatEncoder | None
) -> Iterator[tuple[str, str]]:
    assert document.example is not None
    messages = document.example.conversation.messages
    if encoder is not None and _drops_system(encoder, document):
        yield "the chat template leaves out the system message: the model never sees it", ""
    runs = _runs(tokens)
    if not all(run[-1].is_special for run in runs):
        yield "no end-of-turn token is trained behind an answer: the model will not learn to stop", ""
    if any(message.keys() - {"role", "content"} for message in messages):
        return  # what else a template makes of a message cannot be told from its own text
    answers = {_plain(m["content"], tokenizer) for m in messages if m["role"] == "assistant"}
    for run in runs:
        text = " ".join(tokenizer.decode([token.id for token in run]).split())
        if text not in answers:
            inside = max((answer for answer in answers if answer in text), key=len, default="")
            extra = text.replace(inside, "…", 1) if inside else text
            yield "text is trained that is in no answer: part of a prompt, or of the template", f": {extra[:60]!r}"
            return


def _drops_system(encoder: ChatEncoder, document: Document) -> bool:
    """Whether the format writes the same without the system messages, other than by its own default in their place."""
    assert document.example is not None
    messages = document.example.conversation.messages
    rest = [message for message in messages if message["role"] != "system"]
    if len(rest) == len(messages) or not rest:
        return False
    try:
        return encoder.text(messages) == encoder.text(rest)
    except LamoidError:
        return False


def _runs(tokens: list[Token]) -> list[list[Token]]:
    """The stretches of trained tokens."""
    runs: list[list[Token]] = [[]]
    for token in tokens:
        if token.state == "trained":
            runs[-1].append(token)
        elif runs[-1]:
            runs.append([])
    return [run for run in runs if run]


def _plain(content: str, tokenizer: Tokenizer) -> str:
    """A text as it comes back from its ids, white space folded."""
    return " ".join(tokenizer.decode(tokenizer.encode(content, add_special_tokens=False)).split())
