"""One forward pass, with everything that comes by on its way from the ids to the logits, as plain tensors.

The pass is the model's own: hooks that exist only while it runs keep what goes into its parts and comes out of them.
What is between (queries, scores, weights, gates) is made again from these inputs by the same parts.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from lamoid.errors import UsageError
from lamoid.models.decoders import DecoderModel
from lamoid.models.heads import Encoder, HeadedEncoder, MLMHead, PooledEncoder, PretrainingHead
from lamoid.nn.attention import Attention, attention_scores
from lamoid.nn.feed_forward import SwiGLU
from lamoid.nn.masks import Documents
from lamoid.nn.positions import rotate

TracedModel = DecoderModel | Encoder | HeadedEncoder | PooledEncoder


@dataclass(frozen=True)
class LayerTrace:
    """What comes by in one block, in order. Heads come second: (B, H, T, E), keys and values (B, K, T, E).

    `rotated_q` and `rotated_k` are `q` and `k` themselves where there is no RoPE. `scores` are scaled, and −∞ where a
    query does not see; `weights` are their softmax, `heads` the weighted sums of the values. `gate` is what the gate's
    function is given, None in a network without one; `up` likewise in such a network, and `activated` is what
    `down_proj` gets. `attention_norm` and `feed_forward_norm` are the outputs of the norms, which stand before
    their sublayer (Pre-LN) or behind the sum (Post-LN). `middle` is the residual stream between the two sublayers.
    """

    attention_norm: Float[Tensor, "B T D"]
    q: Float[Tensor, "B H T E"]
    k: Float[Tensor, "B K T E"]
    v: Float[Tensor, "B K T E"]
    rotated_q: Float[Tensor, "B H T E"]
    rotated_k: Float[Tensor, "B K T E"]
    scores: Float[Tensor, "B H T T"]
    weights: Float[Tensor, "B H T T"]
    heads: Float[Tensor, "B H T E"]
    attention: Float[Tensor, "B T D"]
    middle: Float[Tensor, "B T D"]
    feed_forward_norm: Float[Tensor, "B T D"]
    gate: Float[Tensor, "B T F"] | None
    up: Float[Tensor, "B T F"]
    activated: Float[Tensor, "B T F"]
    feed_forward: Float[Tensor, "B T D"]
    residual: Float[Tensor, "B T D"]


@dataclass(frozen=True)
class Trace:
    """A whole pass. `embeddings` are what the first block gets, `token_embeddings` the rows of the table alone.

    `final` is what an output layer gets: the last residual, normalised where the model has a norm there. `logits` is None
    in an encoder without a head for masked tokens.
    """

    token_embeddings: Float[Tensor, "B T D"]
    embeddings: Float[Tensor, "B T D"]
    layers: list[LayerTrace]
    final: Float[Tensor, "B T D"]
    logits: Float[Tensor, "B T V"] | None

    @property
    def residuals(self) -> list[Tensor]:
        """The residual stream: the embeddings, and what each block leaves."""
        return [self.embeddings, *(layer.residual for layer in self.layers)]


@torch.no_grad()
def trace(
    model: nn.Module,
    input_ids: Int[Tensor, "B T"],
    attention_mask: Int[Tensor, "B T"] | None = None,
    segment_ids: Int[Tensor, "B T"] | None = None,
) -> Trace:
    """Run the model once, without dropout, and return what came by. Arguments as in the model's `forward`.

    Memory: layers · B · (2 · H · T² + (3 H + 4 K) · T · E + 3 · T · F) numbers and a little more: for short texts.
    Raises UsageError for a model of another kind.
    """
    if not isinstance(model, TracedModel):
        raise UsageError(f"the model is a {type(model).__name__}; a trace takes a decoder or an encoder")
    body: Any = model.encoder if isinstance(model, HeadedEncoder | PooledEncoder) else model
    blocks = list(body.layers)
    parts = [part for block in blocks for part in (block, *_sublayers(block))]
    with _evaluating(model), _recording([body.embedding, *parts]) as calls:
        if isinstance(body, DecoderModel):
            final = body.hidden_states(input_ids, attention_mask, segment_ids)
        else:
            final = body(input_ids, attention_mask, segment_ids)
        layers = [_layer(block, calls) for block in blocks]
        lens = _output_layer(model)
        logits = None if lens is None else lens(final)
    return Trace(calls[body.embedding].out, calls[blocks[0]].args[0], layers, final, logits)


@torch.no_grad()
def layer_logits(model: nn.Module, found: Trace) -> Iterator[Float[Tensor, "B T V"]]:
    """The logit lens: what the output layer would say of the embeddings, and of the residual stream behind each block.

    logits_l = W · norm(x_l), with the model's own last norm and output layer; the last are those of the model. One at a
    time, since all of them are layers · B · T · V numbers. Source: nostalgebraist 2020, "interpreting GPT: the logit lens".
    Raises UsageError for an encoder without a head for masked tokens.
    """
    output = _output_layer(model)
    if output is None:
        raise UsageError(
            f"this {type(model).__name__} has no output layer over the vocabulary; the logit lens needs one"
        )
    norm = getattr(model, "norm", nn.Identity())
    with _evaluating(model):
        for residual in found.residuals:
            yield output(norm(residual))


def _output_layer(model: nn.Module) -> nn.Module | None:
    """What turns the last hidden states into logits of tokens."""
    if isinstance(model, DecoderModel):
        return model.lm_head
    head = model.head if isinstance(model, HeadedEncoder) else None
    head = head.mlm if isinstance(head, PretrainingHead) else head
    return head if isinstance(head, MLMHead) else None


@dataclass(frozen=True)
class _Call:
    """What a module was given, and what it gave."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    out: Tensor


@contextmanager
def _recording(modules: list[nn.Module]) -> Iterator[dict[nn.Module, _Call]]:
    """Keep the call of each module while the context is open."""
    calls: dict[nn.Module, _Call] = {}

    def keep(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], out: Tensor) -> None:
        calls[module] = _Call(args, kwargs, out)

    with ExitStack() as stack:
        for module in modules:
            stack.callback(module.register_forward_hook(keep, with_kwargs=True).remove)
        yield calls


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Without dropout; every part goes back to the mode that it was in."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


def _sublayers(block: nn.Module) -> list[nn.Module]:
    found: Any = block
    return [found.attention_norm, found.attention, found.feed_forward_norm, found.feed_forward]


def _layer(block: nn.Module, calls: dict[nn.Module, _Call]) -> LayerTrace:
    attention_norm, attention, feed_forward_norm, feed_forward = (calls[part] for part in _sublayers(block))
    is_pre_norm = attention.args[0] is attention_norm.out
    return LayerTrace(
        attention_norm=attention_norm.out,
        **_attention(block.attention, attention),  # type: ignore[arg-type]
        attention=attention.out,
        middle=(feed_forward_norm if is_pre_norm else feed_forward).args[0],
        feed_forward_norm=feed_forward_norm.out,
        **_feed_forward(block.feed_forward, feed_forward.args[0]),  # type: ignore[arg-type]
        feed_forward=feed_forward.out,
        residual=calls[block].out,
    )


def _attention(module: Attention, call: _Call) -> dict[str, Tensor]:
    """Queries to heads, from what the module was given: the input, cos and sin of RoPE, the mask; the bias by name."""
    x, rope, mask = call.args[:3]
    q, k, v = (
        linear(x).unflatten(-1, (-1, module.head_dim)).transpose(1, 2)
        for linear in (module.q_proj, module.k_proj, module.v_proj)
    )
    rotated_q, rotated_k = (q, k) if rope is None else (rotate(q, *rope), rotate(k, *rope))
    settings: dict[str, Any] = module.settings | {"bias": call.kwargs.get("bias")}
    if isinstance(mask, Documents):
        mask = mask.mask(rotated_q.device)
    scores = attention_scores(rotated_q, rotated_k, mask, **settings)
    weights = scores.softmax(dim=-1)
    heads = module.attend(rotated_q, rotated_k, v, mask, **settings)
    return dict(q=q, k=k, v=v, rotated_q=rotated_q, rotated_k=rotated_k, scores=scores, weights=weights, heads=heads)


def _feed_forward(module: Any, x: Tensor) -> dict[str, Tensor | None]:
    up, gate = module.up_proj(x), module.gate_proj(x) if hasattr(module, "gate_proj") else None
    if gate is None:
        return dict(gate=None, up=up, activated=module.activation(up))
    return dict(gate=gate, up=up, activated=(F.silu if isinstance(module, SwiGLU) else module.gate)(gate) * up)
