"""The page: what it says is what the model says, and nothing on it comes from elsewhere or is anything but text."""

import base64
import io
import re
from collections import Counter
from html.parser import HTMLParser
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tests.models.twins import scatter
from torch import Tensor

from lamoid.errors import UsageError
from lamoid.inspect.model_page import MAX_TOKENS, Inside, look_inside, page, sections, summary
from lamoid.inspect.trace_figures import entropy_bits
from lamoid.models.bert import Bert, BertConfig
from lamoid.models.gpt2 import GPT2, GPT2Config
from lamoid.models.heads import PooledEncoder, Pooler, attach_head
from lamoid.models.llama import Llama, LlamaConfig
from lamoid.models.roberta import Roberta, RobertaConfig
from lamoid.models.transformer import Transformer, TransformerConfig
from lamoid.models.variant import Variant, VariantConfig
from lamoid.tokenizers.char import train_char
from lamoid.tokenizers.tokenizer import Tokenizer

TEXT = "Con mèo 猫 고양이 <script>alert('x')</script> & \"q\" \x1b[31m\u202eنص"


def tokenizer() -> Tokenizer:
    """Characters; what it has not seen are bytes."""
    return train_char(["Con mèo <script>alert('x')</script> & \"q\" 猫고\u202e"])


V = tokenizer().vocab_size + 3  # a model may have more rows than the tokenizer has tokens
MODELS: dict[str, Any] = {
    "llama, one kv head": lambda: Llama(LlamaConfig(V, 24, 3, 4, 1, 10, 31, 128)),
    "gpt2": lambda: GPT2(GPT2Config(V, 24, 2, 4, 31, 128)),
    "bert without a head": lambda: PooledEncoder(Bert(BertConfig(V, 24, 2, 4, 31, 128)), Pooler(24)),
    "bert": lambda: Bert(BertConfig(V, 24, 2, 4, 31, 128)),
    "roberta with masked tokens": lambda: attach_head(Roberta(RobertaConfig(V, 24, 2, 4, 31, 128)), "mlm", 0),
    "variant with alibi": lambda: Variant(VariantConfig(V, 24, 2, 6, 2, 4, 31, 128, positions="alibi")),
    "variant without positions": lambda: Variant(VariantConfig(V, 24, 1, 1, 1, 6, 31, 128, positions="none")),
}
VOID = {"meta", "br", "hr", "img", "input"}


class Reader(HTMLParser):
    """Tags in balance, ids, what is referred to, and the text that a person reads."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: Counter[str] = Counter()
        self.ids: list[str] = []
        self.references: list[str] = []
        self.text = ""
        self.feed(html)
        assert not self.open, self.open

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        if tag not in VOID:
            self.open.append(tag)
        for name, value in attributes:
            assert not name.startswith("on") and name != "src"
            if name == "id":
                self.ids.append(value or "")
            if name == "href":
                self.references.append(value or "")

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attributes)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.text += data


def look(name: str, text: str = TEXT) -> Inside:
    return look_inside(scatter(MODELS[name]()), tokenizer(), "a <b>model</b>", text)


@pytest.mark.parametrize("name", MODELS)
def test_the_page_stands_by_itself_and_its_texts_are_texts(name: str):
    inside = look(name)
    html = page(inside, sections(inside))
    read = Reader(html)
    assert "script" not in read.tags and "b>model" in read.text and not {"link", "iframe", "object"} & read.tags.keys()
    assert len(read.ids) == len(set(read.ids))
    inward = [r.removeprefix("#") for r in read.references if r.startswith("#")]
    assert set(inward) <= set(read.ids) and inward
    assert all(r.startswith(("#", "data:image/png;base64,")) for r in read.references)
    assert "url(" not in html and "@import" not in html and "http:" not in html and "https:" not in html
    assert "default-src 'none'; style-src 'unsafe-inline'; img-src data:" in html
    assert "prefers-color-scheme: dark" in html and '<meta charset="utf-8">' in html
    assert "\x1b" not in html and "\u202e" not in html and "\\x1b" in read.text and "\\u202e" in read.text
    assert "猫" in read.text and "고" in read.text and "‹EC›" in read.text  # 양 is three bytes here


@pytest.mark.parametrize("name", MODELS)
def test_maps_are_the_weights_of_the_model(name: str):
    inside = look(name)
    html = page(inside, sections(inside))
    for layer, found in enumerate(inside.trace.layers):
        for head in range(found.weights.shape[1]):
            address = re.search(rf'<symbol id="a{layer}-{head}".*?href="data:image/png;base64,([^"]*)"', html)
            assert address is not None and html.count(f'id="m{layer}-{head}"') == 1
            picture = Image.open(io.BytesIO(base64.b64decode(address[1]))).convert("RGBA")
            opacity = np.asarray(picture)[..., 3] / 255
            np.testing.assert_allclose(opacity, found.weights[0, head].sqrt(), atol=0.5 / 31 + 0.5 / 255)


def top(logits: Tensor) -> tuple[int, float]:
    shares = logits.softmax(-1)
    return int(shares.argmax()), float(shares.max())


@torch.no_grad()
def test_lens_and_what_comes_next_are_the_models_own():
    inside = look("llama, one kv head")
    model: Any = inside.model
    ids = torch.tensor([inside.ids])
    logits, x = model(ids)[0], model.embedding(ids)
    facts = summary(inside, sections(inside))
    assert [(g["id"], g["probability"]) for g in facts["next"][:1]] == [pytest.approx(top(logits[-1]), rel=1e-5)]
    assert len(facts["next"]) == 15 and sorted(facts["next"], key=lambda g: -g["probability"]) == facts["next"]
    rope = model.rope(torch.arange(len(inside.ids))[None])
    for depth in range(4):
        expected = [top(row) for row in model.lm_head(model.norm(x))[0]]
        found = [(g["id"], g["probability"]) for g in facts["logit_lens"][depth]]
        for ours, theirs in zip(found, expected, strict=True):
            assert ours == pytest.approx(theirs, rel=1e-4)
        assert facts["residual_lengths"][depth] == pytest.approx(x[0].norm(dim=-1).tolist(), rel=1e-4, abs=1e-4)
        x = model.layers[depth](x, rope, None, None, depth, False) if depth < 3 else x
    assert facts["cache_bytes_per_token"] == 2 * 3 * 1 * 10 * 4
    assert facts["n_kv_heads"] == 1 and "".join(t["text"] for t in facts["tokens"]).startswith(
        "<|begin_of_text|>Con␣mèo␣猫"
    )
    expected_bits = torch.distributions.Categorical(logits=logits[-1].double()).entropy() / np.log(2)
    assert entropy_bits(logits[None]) == pytest.approx(float(expected_bits))
    assert f"entropy is {float(expected_bits):.2f} bits" in page(inside, sections(inside))


def test_framed_cells_are_those_that_the_text_goes_on_with():
    inside = look("llama, one kv head", "Con mèo")
    inside.lens[2][1][0] = type(inside.lens[2][1][0])(inside.ids[2], 0.5)
    table = next(f for f in sections(inside)["This text in this model"] if f.title == "Logit lens").body
    rows = re.findall(r"<tr><th>(.*?)</tr>", table)[1:]
    hits = {
        (d, t) for d, row in enumerate(rows) for t, cell in enumerate(re.findall("<td[^>]*>", row)) if "hit" in cell
    }
    wanted = {
        (d, t) for d, row in enumerate(inside.lens) for t, g in enumerate(row[:-1]) if g[0].id == inside.ids[t + 1]
    }
    assert hits == wanted and (2, 1) in hits


def test_what_is_shown_follows_from_the_model():
    """No cache and nothing that comes next in an encoder, no lens without an output layer, RoPE where there is RoPE."""
    titles = {name: {f.title for part in sections(look(name)).values() for f in part} for name in MODELS}
    decoders, lensed = ("llama, one kv head", "gpt2", "variant with alibi", "variant without positions"), "Logit lens"
    for name, found in titles.items():
        assert ("What comes next" in found) == ("The KV cache grows with the text" in found) == (name in decoders)
        assert (lensed in found) == (name in (*decoders, "roberta with masked tokens"))
        assert any("RoPE" in title for title in found) == (name == "llama, one kv head")
        assert {"Attention", "The residual stream through depth", "SwiGLU against ReLU"} <= found


def test_texts_that_are_empty_or_too_long_and_models_of_another_kind_are_refused():
    model = MODELS["gpt2"]()
    with pytest.raises(UsageError, match=f"the text has {MAX_TOKENS + 1} tokens; a page shows at most {MAX_TOKENS}"):
        look_inside(model, tokenizer(), "x", "o" * MAX_TOKENS)
    assert len(look_inside(model, tokenizer(), "x", "o" * (MAX_TOKENS - 1)).ids) == MAX_TOKENS
    with pytest.raises(UsageError, match="the text has 33 tokens; a page shows at most 32 of this model"):
        look_inside(GPT2(GPT2Config(V, 24, 1, 4, 31, 32)), tokenizer(), "x", "o" * 32)
    with pytest.raises(UsageError, match="the text is empty"):
        look_inside(model, tokenizer(), "x", "")
    with pytest.raises(UsageError, match="x is a Transformer; inspect takes a decoder or an encoder"):
        look_inside(Transformer(TransformerConfig(V, 24, 1, 4, 31)), tokenizer(), "x", "o")


@pytest.mark.parametrize("text", ["o", "oo"])
def test_the_shortest_texts(text: str):
    inside = look("llama, one kv head", text)
    Reader(page(inside, sections(inside)))
