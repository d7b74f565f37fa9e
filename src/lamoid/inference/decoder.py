"""A Llama in torch, one token at a time: prompts in, logits out as numpy arrays.

A decoding step of one sequence is a walk through all weights, and memory is its limit. What costs more than reading is
left out: modules, transposes, separate products of one input, and products that run on one core (see `_Product`).
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from lamoid.adapt.adapters import AdaptedLinear
from lamoid.adapt.lora import LoraLinear, merged_weight
from lamoid.adapt.nf4 import Nf4Linear
from lamoid.models.llama import Block, Llama
from lamoid.nn.attention import attend_fused
from lamoid.nn.kv_cache import KVCache
from lamoid.nn.linear import Linear
from lamoid.nn.positions import rotate

MOST_ROWS = 8
"""Up to this many sequences a product with a matrix is limited by reading the matrix."""


class TorchDecoder:
    """Holds the cache of a batch of sequences. Prompts of unequal length are padded on the left and masked.

    `keep_cache`: a single prompt that begins like the sequence before it is read only from where the two part, as the
    turns of a conversation do. Not where RoPE's frequencies depend on the length, since then every value does.
    """

    def __init__(self, model: Llama, *, keep_cache: bool = False) -> None:
        self.model = model.eval()
        self._keep_cache = keep_cache and not model.rope.depends_on_length
        self._cached_ids: list[int] = []
        self.max_seq_len = model.config.max_seq_len
        self._cache = KVCache(model.config.n_layers)
        self._mask: Tensor | None = None
        self._lengths: list[int] = []
        self._blocks = [_BlockStep(block) for block in model.layers]  # type: ignore[arg-type]
        self._lm_head = _product(model.embedding.weight.dtype, model.lm_head)

    @torch.inference_mode()
    def prefill(self, prompts: Sequence[Sequence[int]]) -> Float[np.ndarray, "B V"]:
        """Read the prompts; returns the logits of the token after each."""
        if self._keep_cache and len(prompts) == 1:
            return self._prefill_rest(list(prompts[0]))
        self._cached_ids = []
        self._lengths = [len(prompt) for prompt in prompts]
        longest = max(self._lengths)
        ids = torch.zeros(len(prompts), longest, dtype=torch.int64)
        mask = torch.zeros_like(ids)
        for row, prompt in enumerate(prompts):
            ids[row, longest - len(prompt) :] = torch.tensor(prompt)
            mask[row, longest - len(prompt) :] = 1
        device = self.model.embedding.weight.device
        self._mask = mask.to(device) if len(set(self._lengths)) > 1 else None
        self._cache = KVCache(self.model.config.n_layers, capacity=longest + 256)
        hidden = self.model.hidden_states(ids.to(device), self._mask, cache=self._cache)
        return self.model.lm_head(hidden[:, -1]).float().cpu().numpy()

    @torch.inference_mode()
    def step(self, ids: Sequence[int]) -> Float[np.ndarray, "B V"]:
        """Append one token to each sequence; returns the logits of the next."""
        new = torch.tensor(ids, device=self.model.embedding.weight.device)
        if self._mask is not None:
            self._mask = F.pad(self._mask, (0, 1), value=1)
        if self.model.rope.depends_on_length:
            logits = self.model(new[:, None], self._mask, cache=self._cache)[:, -1]
        else:
            logits = self._step(new)
        self._lengths = [length + 1 for length in self._lengths]
        if self._cached_ids:
            self._cached_ids.append(ids[0])
        return logits.float().cpu().numpy()

    def keep_rows(self, rows: list[int]) -> None:
        """Go on with these sequences alone, in this order."""
        self._cache.keep_rows(rows)
        self._lengths = [self._lengths[row] for row in rows]
        if self._mask is not None:
            self._mask = self._mask[rows]

    def _prefill_rest(self, prompt: list[int]) -> Float[np.ndarray, "1 V"]:
        """Read what the cache lacks, at least one token. What Ctrl-C leaves half done counts as not read."""
        pairs = zip(self._cached_ids, prompt[:-1], strict=False)
        n_kept = next(
            (i for i, (old, new) in enumerate(pairs) if old != new), min(len(self._cached_ids), len(prompt) - 1)
        )
        self._cached_ids = self._cached_ids[:n_kept]
        self._lengths, self._mask, self._cache.length = [len(prompt)], None, n_kept
        ids = torch.tensor(prompt[n_kept:], device=self.model.embedding.weight.device)[None]
        hidden = self.model.hidden_states(ids, cache=self._cache)
        self._cached_ids = prompt
        return self.model.lm_head(hidden[:, -1]).float().cpu().numpy()

    def _step(self, ids: Tensor) -> Tensor:
        model, cache = self.model, self._cache
        positions = torch.tensor(self._lengths, device=ids.device)[:, None]
        rope = model.rope(positions)
        mask = None if self._mask is None else self._mask.bool()[:, None, None, :]
        x = model.embedding.weight[ids]
        for layer, block in enumerate(self._blocks):
            x = block(x, rope, mask, cache, layer)
        cache.length += 1
        return self._lm_head(model.norm.forward(x))


class _BlockStep:
    """`Block.forward` for one new position of each sequence."""

    def __init__(self, block: Block) -> None:
        attention, feed_forward = block.attention, block.feed_forward
        self._attention_norm, self._feed_forward_norm = block.attention_norm, block.feed_forward_norm
        self._head_dim = attention.head_dim
        self._n_rotated = (attention.q_proj.out_features + attention.k_proj.out_features) // attention.head_dim
        self._n_heads = attention.q_proj.out_features // attention.head_dim
        dtype = block.attention_norm.weight.dtype
        self._qkv = _product(dtype, attention.q_proj, attention.k_proj, attention.v_proj)
        self._out = _product(dtype, attention.o_proj)
        self._gate_up = _product(dtype, feed_forward.gate_proj, feed_forward.up_proj)
        self._down = _product(dtype, feed_forward.down_proj)

    def __call__(
        self, x: Float[Tensor, "B D"], rope: tuple[Tensor, Tensor], mask: Tensor | None, cache: KVCache, layer: int
    ) -> Float[Tensor, "B D"]:
        heads = self._qkv(self._attention_norm.forward(x)).reshape(len(x), -1, 1, self._head_dim)
        rotated = rotate(heads[:, : self._n_rotated], *rope)
        k, v = cache.append(layer, rotated[:, self._n_heads :], heads[:, self._n_rotated :])
        x = x + self._out(attend_fused(rotated[:, : self._n_heads], k, v, mask).flatten(1))
        gate, up = self._gate_up(self._feed_forward_norm.forward(x)).chunk(2, dim=-1)
        return x + self._down(F.silu(gate).mul_(up))


def _product(dtype: torch.dtype, *layers: nn.Module) -> Callable[[Tensor], Tensor]:
    """`_Product` of these layers, followed by the adapter where the only layer has one."""
    adapted = layers[0]
    if len(layers) > 1 or not isinstance(adapted, AdaptedLinear):
        return _Product(*layers, dtype=dtype)
    product = _Product(adapted.linear, dtype=dtype)
    return lambda x: adapted.adapter(product(x))


class _Product:
    """x Wᵀ + b of one linear layer, or of several that read the same x, with the rows of W dealt out to the cores.

    PyTorch hands a matrix-vector product to one core, and one core cannot draw what memory gives. A batched product of
    as many pieces as there are cores keeps all of them reading: measured 50 instead of 20 GB/s on two Zen 5 cores.
    Several layers are joined in a copy of their weights; LoRA is merged into one, and NF4 dequantized. Layers of another
    kind are called as they are.
    """

    def __init__(self, *linears: nn.Module, dtype: torch.dtype = torch.float32) -> None:
        """`dtype` is what x has, for weights that are made here."""
        self._linears, n_pieces = linears, torch.get_num_threads()
        known: list[Any] = [linear for linear in linears if type(linear) in (Linear, LoraLinear, Nf4Linear)]
        self._n_out = sum(linear.out_features for linear in known)
        self._pieces: Tensor | None = None
        if self._n_out % n_pieces or len(known) < len(linears):
            return
        weights = [linear.weight if type(linear) is Linear else merged_weight(linear).to(dtype) for linear in known]
        weights = [weight.detach() for weight in weights]
        biases = [linear.bias.detach() for linear in known if linear.bias is not None]
        self._bias = torch.cat(biases) if biases else None
        joined = torch.cat(weights) if len(weights) > 1 else weights[0]
        self._pieces = joined.view(n_pieces, -1, joined.shape[1])

    def __call__(self, x: Float[Tensor, "B in"]) -> Float[Tensor, "B out"]:
        n_rows, pieces = len(x), self._pieces
        if pieces is None or n_rows > MOST_ROWS:
            return torch.cat([linear(x) for linear in self._linears], dim=-1)
        product = torch.bmm(pieces, x.T.expand(len(pieces), -1, -1))
        product = product.view(1, -1) if n_rows == 1 else product.view(self._n_out, n_rows).T
        return product if self._bias is None else product + self._bias
