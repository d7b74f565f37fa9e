"""A Llama in torch, one token at a time: prompts in, logits out as numpy arrays.

A decoding step of one sequence is a walk through all weights, and memory is its limit. What costs more than reading is
left out: modules, transposes, and a matrix-vector product that runs on one core (see `_multiply`).
"""

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from lamoid.models.llama import Block, Llama
from lamoid.nn.attention import attend_fused
from lamoid.nn.kv_cache import KVCache
from lamoid.nn.norms import RMSNorm
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
        for layer, block in enumerate(model.layers):
            x = _block_step(x, block, rope, mask, cache, layer)  # type: ignore[arg-type]
        cache.length += 1
        return _multiply(_normalise(x, model.norm), model.lm_head)


def _block_step(
    x: Float[Tensor, "B D"],
    block: Block,
    rope: tuple[Tensor, Tensor],
    mask: Tensor | None,
    cache: KVCache,
    layer: int,
) -> Float[Tensor, "B D"]:
    """`Block.forward` for one new position of each sequence."""
    attention, feed_forward = block.attention, block.feed_forward
    h = _normalise(x, block.attention_norm)
    shape = (len(x), -1, 1, attention.head_dim)
    q, k, v = (_multiply(h, p).view(shape) for p in (attention.q_proj, attention.k_proj, attention.v_proj))
    k, v = cache.append(layer, rotate(k, *rope), v)
    x = x + _multiply(attend_fused(rotate(q, *rope), k, v, mask).flatten(1), attention.o_proj)
    h = _normalise(x, block.feed_forward_norm)
    h = F.silu(_multiply(h, feed_forward.gate_proj)).mul_(_multiply(h, feed_forward.up_proj))
    return x + _multiply(h, feed_forward.down_proj)


def _normalise(x: Float[Tensor, "B D"], norm: RMSNorm) -> Float[Tensor, "B D"]:
    return F.rms_norm(x, (x.shape[-1],), norm.weight, norm.eps)


def _multiply(x: Float[Tensor, "B in"], linear: nn.Linear) -> Float[Tensor, "B out"]:
    """x Wᵀ + b, with the rows of W dealt out to the cores.

    PyTorch hands a matrix-vector product to one core, and one core cannot draw what memory gives. A batched product of
    as many pieces as there are cores keeps all of them reading: measured 50 instead of 20 GB/s on two Zen 5 cores.
    """
    n_pieces = torch.get_num_threads()
    if len(x) > MOST_ROWS or len(linear.weight) % n_pieces or type(linear) is not nn.Linear:
        return linear(x)
    pieces = linear.weight.view(n_pieces, -1, x.shape[1])
    product = torch.bmm(pieces, x.T.expand(n_pieces, -1, -1)).flatten(0, 1).T
    return product if linear.bias is None else product + linear.bias
