"""The inside of a model on one page: what it makes of a text, and its parts. No script, no network; every text is escaped."""

import html
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn

from lamoid.errors import UsageError
from lamoid.inspect import part_figures, svg, trace_figures
from lamoid.inspect.svg import Figure
from lamoid.inspect.token_labels import TokenLabels
from lamoid.inspect.trace import Trace, trace
from lamoid.inspect.trace_figures import Guess
from lamoid.models.decoders import DecoderModel
from lamoid.models.heads import Encoder, HeadedEncoder, PooledEncoder
from lamoid.nn.positions import RoPE
from lamoid.tokenizers.tokenizer import Tokenizer

MAX_TOKENS = 128

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem }
body { color: var(--ink); background: var(--paper) }
h1 { font-size: 1.5rem } h2 { font-size: 1.2rem; margin-top: 2.4rem; border-bottom: 1px solid var(--line) }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .1rem 1rem } dt { color: var(--soft) } dd { margin: 0 }
.tokens { line-height: 2.1; overflow-wrap: anywhere }
.tokens span { display: inline-block; line-height: 1.4; background: var(--panel); border: 1px solid var(--line);
  border-radius: 4px; padding: .1rem .3rem; margin-right: .15rem; font-family: ui-monospace, monospace }
"""


@dataclass(frozen=True)
class Inside:
    """A model, a text's ids with their labels, and what came by when the model read them.

    `lens` are the guesses at each depth and position, none in a model without an output layer; `following` those of what
    comes next, of a decoder alone.
    """

    model: nn.Module
    name: str
    ids: list[int]
    labels: list[str]
    label: Callable[[int], str]
    trace: Trace
    lens: list[list[list[Guess]]]
    following: list[Guess]

    @property
    def config(self) -> Any:
        """The model's shape."""
        return self.model.config


def look_inside(model: nn.Module, tokenizer: Tokenizer, name: str, text: str) -> Inside:
    """Trace a text of up to MAX_TOKENS tokens, special ones included. Raises UsageError for a longer or an empty one."""
    if not isinstance(model, DecoderModel | Encoder | HeadedEncoder | PooledEncoder):
        raise UsageError(f"{name} is a {type(model).__name__}; inspect takes a decoder or an encoder")
    ids = tokenizer.encode(text)
    most = min(MAX_TOKENS, model.config.max_seq_len)
    if not text or not ids:
        raise UsageError('the text is empty; give one, such as: lamoid inspect smollm2 "Once upon a time"')
    if len(ids) > most:
        raise UsageError(f"the text has {len(ids)} tokens; a page shows at most {most} of this model: shorten the text")
    found = trace(model, torch.tensor([ids], device=next(model.parameters()).device))
    lens = [] if found.logits is None else trace_figures.lens_guesses(model, found)
    following = (
        trace_figures.next_guesses(found.logits) if isinstance(model, DecoderModel) and found.logits is not None else []
    )
    label = TokenLabels(tokenizer)
    return Inside(model, name, ids, [label(i) for i in ids], label, found, lens, following)


def sections(inside: Inside) -> dict[str, list[Figure]]:
    """What there is to see of this model: of the text first, then of its parts, then of parts that other models have."""
    found, config = inside.trace, inside.config
    of_text = [trace_figures.attention_maps(found.layers, inside.labels), trace_figures.stream_norms(found)]
    if inside.lens:
        expected = [*inside.ids[1:], None] if inside.following else inside.ids
        of_text.append(trace_figures.lens_table(inside.lens, inside.labels, expected, inside.label))
    if inside.following and found.logits is not None:
        of_text.insert(0, trace_figures.next_tokens(inside.following, found.logits, inside.label))
    others = [part_figures.sinusoidal_map(), part_figures.alibi_lines(config.n_heads)]
    return {
        "This text in this model": of_text,
        "This model's parts": list(_parts(inside)),
        "What other models have for positions": others,
    }


def _parts(inside: Inside) -> Iterator[Figure]:
    first, config = inside.trace.layers[0], inside.config
    rope = getattr(inside.model, "rope", None)
    if isinstance(rope, RoPE):
        yield part_figures.rope_turns(rope, first.q[0, 0, -1])
        yield part_figures.rope_decay(rope, 512)
    before = torch.cat([layer.up if layer.gate is None else layer.gate for layer in inside.trace.layers])
    network = getattr(config, "activation", getattr(config, "feed_forward", "swiglu"))
    yield part_figures.activation_curves(network, before)
    if inside.following:
        heads = (config.n_heads, first.k.shape[1])
        yield part_figures.cache_growth(config.n_layers, heads, first.k.shape[-1], config.max_seq_len, first.k.dtype)


def page(inside: Inside, figures: dict[str, list[Figure]]) -> str:
    """The whole page."""
    title = f"Inside {inside.name}"
    facts = "".join(
        f"<dt>{html.escape(key)}</dt><dd>{html.escape(value)}</dd>" for key, value in _facts(inside).items()
    )
    tokens = "".join(
        f'<span title="id {index}, position {place}"><bdi>{html.escape(label)}</bdi></span>'
        for place, (index, label) in enumerate(zip(inside.ids, inside.labels, strict=True))
    )
    body = "".join(f"<h2>{name}</h2>{''.join(one.html() for one in part)}" for name, part in figures.items())
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        '<meta http-equiv="Content-Security-Policy" '
        "content=\"default-src 'none'; style-src 'unsafe-inline'; img-src data:\">"
        f"<title>{html.escape(title)}</title><style>{svg.STYLE}{svg.PAGE_STYLE}{trace_figures.STYLE}{_STYLE}</style></head><body>"
        f'<h1>{html.escape(title)}</h1><dl>{facts}</dl><p class="tokens">{tokens}</p>{body}</body></html>\n'
    )


def _facts(inside: Inside) -> dict[str, str]:
    config, layer = inside.config, inside.trace.layers[0]
    n_parameters = sum(parameter.numel() for parameter in inside.model.parameters())
    return {
        "model": f"{type(inside.model).__name__}, {n_parameters:,} parameters",
        "layers": f"{config.n_layers} of width {config.d_model}, feed-forward {config.d_ff}",
        "heads": f"{config.n_heads} of size {layer.q.shape[-1]}, {layer.k.shape[1]} for keys and values",
        "vocabulary": f"{config.vocab_size:,} tokens",
        "text": f"{len(inside.ids)} tokens",
    }


def summary(inside: Inside, figures: dict[str, list[Figure]]) -> dict[str, Any]:
    """What is on the page, as plain values for JSON."""
    found = inside.trace
    facts: dict[str, Any] = {
        "model": inside.name,
        "kind": type(inside.model).__name__,
        "n_layers": inside.config.n_layers,
        "n_heads": inside.config.n_heads,
        "n_kv_heads": found.layers[0].k.shape[1],
        "tokens": [{"id": i, "text": label} for i, label in zip(inside.ids, inside.labels, strict=True)],
        "figures": {name: [one.title for one in part] for name, part in figures.items()},
        "residual_lengths": trace_figures.stream_lengths(found),
    }
    if inside.lens:
        facts["logit_lens"] = [[_said(cell[0], inside.label) for cell in row] for row in inside.lens]
    if inside.following:
        facts["next"] = [_said(guess, inside.label) for guess in inside.following]
        facts["cache_bytes_per_token"] = sum(
            layer.k[:, :, :1].nbytes + layer.v[:, :, :1].nbytes for layer in found.layers
        )
    return facts


def _said(guess: Guess, label: Callable[[int], str]) -> dict[str, Any]:
    return asdict(guess) | {"text": label(guess.id)}
