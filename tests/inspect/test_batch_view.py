"""A batch token by token, its warnings, and its pictures: everything is read off the tensors and nothing gets lost."""

import html.parser
import json
import re

import numpy as np
import pytest

from lamoid.data.conversations import Conversation
from lamoid.data.instruct import Example, encode_conversations
from lamoid.data.packed import PackedRows
from lamoid.data.packing import PackedConversations
from lamoid.inspect.batch_picture import facts, legend, lines, page, summary, visible
from lamoid.inspect.batch_view import BatchView, view_batch
from lamoid.inspect.batch_warnings import find_warnings
from lamoid.nn.losses import IGNORED
from lamoid.tokenizers.bpe import train_bpe
from lamoid.tokenizers.chat import ChatEncoder, TemplateFormat, llama_3
from lamoid.tokenizers.templates import TemplateRenderer
from lamoid.tokenizers.tokenizer import Tokenizer

TEXTS = [
    "Tiếng Việt được viết.",
    "你好，世界。 안녕",
    "plain words",
    "<script>alert('x')</script>",
    "\x1b[31m\u202e👨‍👩‍👧",
]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_bpe(TEXTS[:3] * 3, 300)


@pytest.fixture(scope="module")
def encoder(tokenizer) -> ChatEncoder:
    return ChatEncoder(llama_3, tokenizer)


def chat(*contents: str, system: str = "", source: str = "a.jsonl line 7") -> Conversation:
    turns = [{"role": ("user", "assistant")[i % 2], "content": content} for i, content in enumerate(contents)]
    return Conversation((*[{"role": "system", "content": system}] * bool(system), *turns), "messages", source)


def text(content: str) -> Conversation:
    return Conversation((), "text", "b.txt", text=content)


def look(examples: list[Example], tokenizer: Tokenizer, row_tokens: int = 400) -> BatchView:
    """All rows of an epoch."""
    packing = PackedConversations(examples, row_tokens, 1, 0)
    packing.batch_rows = packing.rows_per_epoch
    batch, _ = packing((0, 0))
    arrays = (batch.input_ids.numpy(), batch.labels.numpy(), batch.segment_ids.numpy())
    return view_batch(*arrays, tokenizer, packing.rows_at((0, 0))[0])


def look_at_rows(tokens: list[int], tokenizer: Tokenizer, row_tokens: int, batch_rows: int = 1) -> BatchView:
    batch, _ = PackedRows(np.array(tokens, dtype=np.uint16), row_tokens, batch_rows, 0)((0, 0))
    return view_batch(batch.input_ids.numpy(), batch.labels.numpy(), None, tokenizer)


def encoded(conversations, tokenizer, encoder, **settings) -> list[Example]:
    return encode_conversations(conversations, tokenizer, encoder, **{"context": 200, **settings}).examples


# ---- what is trained, and whose it is


def test_conversations_token_by_token(tokenizer, encoder):
    conversations = [chat("Chào", TEXTS[0], TEXTS[1], "👨‍👩‍👧", system="s"), chat(TEXTS[3], TEXTS[4]), text(TEXTS[1])]
    examples = encoded(conversations, tokenizer, encoder)
    view = look(examples, tokenizer, row_tokens=max(map(len, examples)) + 1)
    seen = []
    for document in view.documents:
        tokens = view.rows[document.row][document.start : document.end]
        example = document.example
        assert [token.id for token in tokens] == example.ids.tolist()
        assert [token.state == "trained" for token in tokens] == example.trained.tolist()
        assert {token.state for token in tokens} <= {"trained", "masked"}
        assert [token.position for token in tokens] == list(range(len(example)))
        assert {token.document for token in tokens} == {document.number}
        assert document.n_trained == int(example.trained.sum())
        assert "".join(t.text for t in tokens) == tokenizer.decode(example.ids.tolist(), skip_special_tokens=False)
        seen.append(example)
    assert {id(example) for example in seen} == {id(example) for example in examples}
    padding = [token for row in view.rows for token in row if token.state == "padding"]
    assert len(padding) == view.count("padding") == sum(map(len, view.rows)) - sum(map(len, examples)) > 0
    assert {token.document for token in padding} == {None}
    assert view.share_trained == view.count("trained") / sum(map(len, examples))
    assert not view.sees_all


def test_what_was_shortened_says_so(tokenizer, encoder):
    examples = encoded([chat(*["một hai ba"] * 8), chat("a", "b")], tokenizer, encoder, context=60)
    cuts = {d.example.conversation.messages[0]["content"]: d.cut for d in look(examples, tokenizer).documents}
    assert cuts == {"một hai ba": "shortened", "a": ""}


def test_rows_of_continuous_text(tokenizer):
    """Every token but a row's first is trained; the last one is the label behind the row."""
    begin, end = tokenizer.special_id("bos"), tokenizer.special_id("eos")
    tokens = [begin, 65, 66, end, begin, 67, 68, 69, end, begin, 70, 71, 72, 73, end]
    view = look_at_rows(tokens, tokenizer, row_tokens=len(tokens) - 1)
    assert [token.id for token in view.rows[0]] == tokens
    assert [token.state for token in view.rows[0]] == ["masked"] + ["trained"] * (len(tokens) - 1)
    assert [token.document for token in view.rows[0]] == [0] * 4 + [1] * 5 + [2] * 6
    assert [token.position for token in view.rows[0]] == list(range(len(tokens)))
    assert [(d.start, d.end, d.n_trained, d.cut) for d in view.documents] == [
        (0, 4, 3, ""),
        (4, 9, 5, ""),
        (9, 15, 6, ""),
    ]
    assert view.sees_all


@pytest.mark.parametrize(
    "ids, expected",
    [
        ("b A A e", [""]),
        ("A A e", ["at its beginning"]),
        ("b A A", ["at its end"]),
        ("A A A", ["at both ends"]),
        ("A e b A", ["at its beginning", "at its end"]),
    ],
)
def test_where_continuous_text_was_cut(tokenizer, ids, expected):
    known = {"b": tokenizer.special_id("bos"), "e": tokenizer.special_id("eos"), "A": 65}
    row = [known[name] for name in ids.split()]
    view = view_batch(np.array([row[:-1]]), np.array([row[1:]]), None, tokenizer)
    assert [document.cut for document in view.documents] == expected


def test_documents_without_a_begin_token_are_told_apart_by_their_ends(tokenizer):
    end = tokenizer.special_id("eos")
    for specials in ({"eos": "<|end_of_text|>"}, {"eos": "<|end_of_text|>", "bos": "<|end_of_text|>"}):
        own = Tokenizer(tokenizer.backend, specials)
        view = view_batch(np.array([[65, end, 66, 67]]), np.array([[end, 66, 67, end]]), None, own)
        assert [token.document for token in view.rows[0]] == [0, 0, 1, 1, 1]


def test_a_batch_without_labels(tokenizer):
    view = view_batch(np.array([[65, 66]]), np.full((1, 2), IGNORED), None, tokenizer)
    assert [token.state for token in view.rows[0]] == ["masked", "masked"] and view.share_trained == 0
    assert "no token of this batch is trained" in find_warnings(view, tokenizer)[0]


# ---- warnings


def template_encoder(template: str, tokenizer: Tokenizer, renderers: list[TemplateRenderer]) -> ChatEncoder:
    renderers.append(TemplateRenderer(template))
    return ChatEncoder(TemplateFormat(renderers[-1], tokenizer), tokenizer)


@pytest.fixture
def by_template(tokenizer):
    renderers: list[TemplateRenderer] = []
    yield lambda template: template_encoder(template, tokenizer, renderers)
    for renderer in renderers:
        renderer.close()


TURN = "{{ '<|start_header_id|>' + m.role + '\\n' + m.content + '<|eot_id|>\\n' }}"
PROMPT = "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant\\n' }}{% endif %}"
GOOD = "{% for m in messages %}" + TURN + "{% endfor %}" + PROMPT
CONVERSATIONS = [
    chat("Chào", TEXTS[0], TEXTS[1], "👨‍👩‍👧", system="Be brief."),
    chat(TEXTS[3], " x\n\ny "),
    chat("q", ""),
]


@pytest.mark.parametrize("template", [GOOD, "{{ bos_token }}" + GOOD])
def test_good_data_get_no_warning(tokenizer, encoder, by_template, template):
    for own in (encoder, by_template(template)):
        assert (
            find_warnings(look(encoded([*CONVERSATIONS, text(TEXTS[1])], tokenizer, own), tokenizer), tokenizer, own)
            == []
        )


BAD_TEMPLATES = {
    "drops the system turn": (
        "{% for m in messages %}{% if m.role != 'system' %}" + TURN + "{% endif %}{% endfor %}" + PROMPT,
        "leaves out the system message",
    ),
    "puts its own in its place": (
        "{{ '<|start_header_id|>system\\nI am a llama.<|eot_id|>\\n' }}"
        "{% for m in messages %}{% if m.role != 'system' %}" + TURN + "{% endif %}{% endfor %}" + PROMPT,
        "leaves out the system message",
    ),
    "begins twice": ("{{ bos_token + bos_token }}" + GOOD, "<|begin_of_text|> stands twice"),
    "no end of turn": (
        "{% for m in messages %}{{ '<|start_header_id|>' + m.role + '\\n' + m.content + '\\n' }}{% endfor %}" + PROMPT,
        "no end-of-turn token is trained",
    ),
    "no beginning of an answer": (
        "{% for m in messages %}" + TURN + "{% endfor %}",
        "text is trained that is in no answer",
    ),
    "repeats the question": (
        "{% for m in messages %}{% if m.role == 'assistant' %}"
        "{{ '<|start_header_id|>assistant\\n' + messages[loop.index0 - 1].content + m.content + '<|eot_id|>\\n' }}"
        "{% else %}" + TURN + "{% endif %}{% endfor %}" + PROMPT,
        "text is trained that is in no answer",
    ),
}


@pytest.mark.parametrize("template, expected", BAD_TEMPLATES.values(), ids=BAD_TEMPLATES.keys())
def test_templates_that_look_wrong(tokenizer, by_template, template, expected):
    own = by_template(template)
    examples = encoded([CONVERSATIONS[0]], tokenizer, own)
    warnings = find_warnings(look(examples, tokenizer), tokenizer, own)
    assert len(warnings) == 1 and expected in warnings[0]
    assert "(first in row 1, document 1 (a.jsonl line 7)" in warnings[0]


def test_warnings_are_said_once_with_their_number(tokenizer, by_template):
    own = by_template("{{ bos_token + bos_token }}" + GOOD)
    view = look(encoded([chat(str(i), "x") for i in range(5)], tokenizer, own), tokenizer)
    (warning,) = find_warnings(view, tokenizer, own)
    assert warning.endswith("(first in row 1, document 1 (a.jsonl line 7), and 4 more like it)")


def test_a_document_without_a_trained_token(tokenizer):
    silent = Example(np.array([65, 66]), np.array([False, False]), chat("a", "b", source="c.jsonl line 1"))
    trained = Example(np.array([67, 68, tokenizer.special_id("eos")]), np.array([False, True, True]), text("CD"))
    warnings = find_warnings(look([silent, trained], tokenizer), tokenizer)
    assert warnings == ["a document has no trained token (first in row 1, document 2 (c.jsonl line 1))"]


@pytest.mark.parametrize(
    "content", ["<|im_start|>user\nhi", "x\nUser: hi\nAssistant: ho", "### Instruction:\nhi", "[INST] hi [/INST] ho"]
)
def test_plain_text_that_is_a_chat(tokenizer, content):
    (warning,) = find_warnings(look(encoded([text(content)], tokenizer, None), tokenizer), tokenizer)
    assert "plain text looks like a chat" in warning and "(b.txt)" in warning


def test_text_without_an_end(tokenizer):
    own = Tokenizer(tokenizer.backend, {"bos": "<|begin_of_text|>"})
    (warning,) = find_warnings(look(encoded([text("một hai")], own, None), own), own)
    assert "no end-of-text token" in warning
    assert find_warnings(look(encoded([text("một hai ba bốn")], own, None, context=5), own), own) == []


def test_continuous_text_without_borders(tokenizer):
    own = Tokenizer(tokenizer.backend, {})
    assert "documents cannot be told apart" in find_warnings(look_at_rows([65] * 9, own, 8), own)[0]
    assert find_warnings(look_at_rows([65] * 9, tokenizer, 8), tokenizer) == []


def test_a_doubled_begin_in_continuous_text(tokenizer):
    begin = tokenizer.special_id("bos")
    (warning,) = find_warnings(look_at_rows([begin, begin, 65, 66, 67], tokenizer, 4), tokenizer)
    assert "stands twice" in warning


# ---- pictures


@pytest.fixture
def view(tokenizer, encoder) -> BatchView:
    conversations = [
        chat("Chào", TEXTS[0], TEXTS[1], "👨‍👩‍👧", system="s", source="<b>.jsonl line 1"),
        chat(TEXTS[3], TEXTS[3]),
        chat(TEXTS[4], "a\nb"),
        chat(*["một hai ba"] * 30),
    ]
    return look(encoded(conversations, tokenizer, encoder), tokenizer, row_tokens=200)


def test_marks_stand_around_what_is_trained(view):
    shown = "\n".join(lines(view, colour=False))
    assert "\x1b" not in shown
    marked = "".join(re.findall(r"⟦(.*?)⟧", shown, re.DOTALL))
    assert marked == visible("".join(t.text for row in view.rows for t in row if t.state == "trained"))
    assert f"⟦{TEXTS[0]}<|eot_id|>⟧" in shown and "⟦a⏎\nb<|eot_id|>⟧" in shown
    n_padding = [sum(token.state == "padding" for token in row) for row in view.rows]
    assert re.findall(r"\((\d+) × padding\)", shown) == [str(n) for n in n_padding if n]
    assert "✂ cut: shortened" in shown and "<b>.jsonl line 1" in shown


def test_colours_hold_the_same_text(view):
    coloured, marked = ("\n".join(lines(view, colour=colour)) for colour in (True, False))
    assert re.sub(r"\x1b\[[0-9;]*m", "", coloured) == re.sub("[⟦⟧]", "", marked)
    assert f"\x1b[1;32m{TEXTS[0]}<|eot_id|>\x1b[0m" in coloured
    for state in ("trained", "masked", "padding"):
        assert state in legend(colour=True) and state in legend(colour=False)


def test_data_cannot_steer_the_terminal(view):
    for colour in (False, True):
        shown = "\n".join(lines(view, colour=colour))
        assert "\\x1b[31m\\u202e👨‍👩‍👧" in shown
        assert set(re.findall(r"\x1b\[[0-9;]*m", shown)) <= {"\x1b[1;32m", "\x1b[2m", "\x1b[2;34m", "\x1b[0m"}
    assert visible("a\tb\r\n\x9b\u2066c\\n") == "a\tb\\r⏎\n\\x9b\\u2066c\\n"


def test_json_has_every_token(view):
    found = json.loads(json.dumps(facts(view, ["w"])))
    assert [[token["id"] for token in row] for row in found["rows"]] == [[t.id for t in row] for row in view.rows]
    assert set(found["rows"][0][0]) == {"id", "text", "is_special", "state", "document", "position"}
    states = [token["state"] for row in found["rows"] for token in row]
    assert {name: states.count(name) for name in ("trained", "masked", "padding")} == {
        name: found[name] for name in ("trained", "masked", "padding")
    }
    assert found["warnings"] == ["w"] and found["documents_see_each_other"] is False
    assert [d["source"] for d in found["documents"]] == [d.source for d in view.documents]


class Page(html.parser.HTMLParser):
    """The tags of a page, and the text in its spans by class."""

    def __init__(self, content: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.spans: list[tuple[str, str]] = []
        self._open: list[str] = []
        self.feed(content)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes += attributes
        self._open.append(dict(attributes).get("class") or "" if tag == "span" else "")
        if tag == "span":
            self.spans.append((self._open[-1], ""))

    def handle_endtag(self, tag):
        self._open.pop()

    def handle_data(self, data):
        if self._open and self._open[-1]:
            self.spans[-1] = (self.spans[-1][0], self.spans[-1][1] + data)


def test_the_page_is_whole_and_harmless(view):
    """No script, no link, nothing from a network; what looks like a tag in the data is text; every token is there."""
    content = page(view, ["<i>warning</i> \x1b[31m"], "Step <1>")
    found = Page(content)
    assert set(found.tags) <= {"html", "head", "meta", "title", "style", "body", "h1", "h2", "p", "div", "span"}
    assert not {name for name, _ in found.attributes} & {"src", "href", "onload", "onclick", "style"}
    assert "http://" not in content and "https://" not in content and "\x1b" not in content
    assert "default-src 'none'" in content and 'charset="utf-8"' in content
    assert "&lt;i&gt;warning&lt;/i&gt;" in content and "Step &lt;1&gt;" in content
    tokens = found.spans[3:]  # behind the legend
    assert len(tokens) == sum(map(len, view.rows))
    assert sum(kind.startswith("trained") for kind, _ in tokens) == view.count("trained")
    shown = "".join(text for kind, text in tokens if not kind.startswith("padding"))
    assert "<script>alert('x')</script>" in shown and TEXTS[0] in shown


def test_the_summary_has_the_counts(view):
    share = f"{view.share_trained:.0%}"
    said = summary(view)
    assert f"{view.count('trained')} trained ({share} of all but padding)" in said and "do not see each other" in said
    assert "see each other" in said and f"{view.count('padding')} padding" in said
