"""Llama 1, 2, 3, 3.1 and 3.2: one architecture, from the embedding to the logits, and the sizes it came in.

    x = embedding(ids)
    each block:  x = x + attention(norm(x));  x = x + feed_forward(norm(x))
    logits = lm_head(norm(x))

Source: Touvron et al. 2023a, 2023b; Grattafiori et al. 2024. Pre-norm with RMSNorm, rotary positions, SwiGLU, no biases;
grouped-query attention on Llama 2's 34B and 70B and on all of Llama 3.
"""

import math
from functools import partial

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from lamoid.models.initialise import draw
from lamoid.models.llama_config import LlamaConfig as LlamaConfig
from lamoid.nn.attention import Attention, AttentionPath
from lamoid.nn.feed_forward import SwiGLU
from lamoid.nn.kv_cache import KVCache
from lamoid.nn.linear import Linear
from lamoid.nn.masks import Documents, causal_mask, check_covers, token_positions
from lamoid.nn.norms import RMSNorm
from lamoid.nn.positions import RoPE
from lamoid.nn.remade import keep_all, made_again
from lamoid.nn.rope_scaling import Llama3Scaling

INITIALISATION = {
    # The residual stream gains two terms a block; the root keeps its variance near 1 whatever the depth (GPT-2, section 2.3).
    "o_proj": lambda std, n_layers: std / math.sqrt(2 * n_layers),
    "down_proj": lambda std, n_layers: std / math.sqrt(2 * n_layers),
    # Every other matrix, embeddings included: N(0, std²). Norm gains are 1, biases 0.
    "": lambda std, n_layers: std,
}


class Block(nn.Module):
    """x + attention(norm(x)), then x + feed_forward(norm(x)): Pre-LN (Xiong et al. 2020)."""

    def __init__(self, config: LlamaConfig, attention_path: AttentionPath) -> None:
        super().__init__()
        c = config
        self.attention_norm = RMSNorm(c.d_model, c.norm_eps)
        self.attention = Attention(
            c.d_model, c.n_heads, c.n_kv_heads, c.head_dim, bias=c.attention_bias, path=attention_path
        )
        self.feed_forward_norm = RMSNorm(c.d_model, c.norm_eps)
        self.feed_forward = SwiGLU(c.d_model, c.d_ff, bias=c.feed_forward_bias)

    def forward(
        self,
        x: Float[Tensor, "B T D"],
        rope: tuple[Tensor, Tensor],
        mask: Bool[Tensor, "#B 1 T S"] | Documents | None,
        cache: KVCache | None,
        layer: int,
        rotate_cached_keys: bool,
    ) -> Float[Tensor, "B T D"]:
        normed = self.attention_norm(x)
        with made_again(normed, partial(self.attention_norm, x)):
            x = x + self.attention(normed, rope, mask, cache, layer, rotate_cached_keys=rotate_cached_keys)
        normed = self.feed_forward_norm(x)
        with made_again(normed, partial(self.feed_forward_norm, x)):
            return x + self.feed_forward(normed)


class Llama(nn.Module):
    """A decoder-only language model: ids in, logits of the next token out."""

    def __init__(
        self, config: LlamaConfig, *, attention_path: AttentionPath = "fused", gradient_checkpointing: bool = False
    ) -> None:
        """`gradient_checkpointing` recomputes each block in the backward pass: memory of one block for a third more time."""
        super().__init__()
        self.config = config
        self.gradient_checkpointing = gradient_checkpointing
        self.embedding = nn.Embedding(config.vocab_size, config.d_model)
        self.rope = RoPE(config.head_dim, config.rope_base, config.rope_scaling)
        self.layers = nn.ModuleList(Block(config, attention_path) for _ in range(config.n_layers))
        self.norm = RMSNorm(config.d_model, config.norm_eps)
        self.lm_head = Linear(config.d_model, config.vocab_size, bias=False)
        self.tie_weights()

    def tie_weights(self) -> None:
        """Let the output matrix be the embedding itself where the configuration says so (1B, 3B, SmolLM2)."""
        if self.config.tied_embeddings:
            self.lm_head.weight = self.embedding.weight

    def initialise(self, seed: int) -> "Llama":
        """Draw every matrix anew as INITIALISATION says; the same seed gives the same weights. Returns the model."""

        def std_of(name: str, matrix: Tensor) -> float:
            rule = next(rule for suffix, rule in INITIALISATION.items() if suffix in name)
            return rule(self.config.init_std, self.config.n_layers)

        draw(self, std_of, seed)
        return self

    def forward(
        self,
        input_ids: Int[Tensor, "B T"],
        attention_mask: Int[Tensor, "B S"] | None = None,
        segment_ids: Int[Tensor, "B T"] | None = None,
        *,
        cache: KVCache | None = None,
    ) -> Float[Tensor, "B T V"]:
        """Logits of the token after each position.

        attention_mask: 1 for tokens, 0 for padding, on either side; with a cache it also covers the cached positions.
        segment_ids: documents packed into one row; each sees only itself, and its positions begin at 0.
        cache: keys and values of the positions before input_ids; it is extended in place.
        """
        return self.lm_head(self.hidden_states(input_ids, attention_mask, segment_ids, cache=cache))

    def hidden_states(
        self,
        input_ids: Int[Tensor, "B T"],
        attention_mask: Int[Tensor, "B S"] | None = None,
        segment_ids: Int[Tensor, "B T"] | None = None,
        *,
        cache: KVCache | None = None,
    ) -> Float[Tensor, "B T D"]:
        """The normalised output of the last block: what `lm_head` turns into logits. Arguments as in `forward`."""
        n_cached = cache.length if cache is not None else 0
        n_new = input_ids.shape[1]
        check_covers(attention_mask, segment_ids, n_cached, n_new)
        positions = token_positions(input_ids, n_cached, attention_mask, segment_ids)
        rotate_cached_keys = cache is not None and self.rope.depends_on_length
        rope = self.rope(positions if rotate_cached_keys else positions[:, n_cached:])
        mask = causal_mask(n_new, n_cached, attention_mask, segment_ids)
        x = self.embedding(input_ids)
        for layer, block in enumerate(self.layers):
            arguments = (x, rope, mask, cache, layer, rotate_cached_keys)
            if self.gradient_checkpointing and torch.is_grad_enabled():
                x = checkpoint(block, *arguments, use_reentrant=False, context_fn=keep_all)
            else:
                x = block(*arguments)
        if cache is not None:
            cache.length += n_new
        return self.norm(x)


def _preset(d_model: int, n_heads: int, n_layers: int, d_ff: int, **other: object) -> LlamaConfig:
    shape = dict(d_model=d_model, n_heads=n_heads, n_kv_heads=n_heads, n_layers=n_layers, d_ff=d_ff)
    rest = dict(head_dim=d_model // n_heads, vocab_size=32_000, max_seq_len=2048)
    return LlamaConfig(**(shape | rest | other))  # type: ignore[arg-type]


_LLAMA1 = dict(norm_eps=1e-6)
_LLAMA2 = dict(max_seq_len=4096)
_LLAMA3 = dict(vocab_size=128_256, max_seq_len=8192, n_kv_heads=8, rope_base=500_000.0)
_LLAMA3_1 = _LLAMA3 | dict(max_seq_len=131_072, rope_scaling=Llama3Scaling(8.0, 1.0, 4.0, 8192))
_LLAMA3_2 = _LLAMA3 | dict(max_seq_len=131_072, rope_scaling=Llama3Scaling(32.0, 1.0, 4.0, 8192), tied_embeddings=True)

PRESETS = {
    "llama-7b": _preset(4096, 32, 32, 11_008, **_LLAMA1),
    "llama-13b": _preset(5120, 40, 40, 13_824, **_LLAMA1),
    "llama-33b": _preset(6656, 52, 60, 17_920, **_LLAMA1),
    "llama-65b": _preset(8192, 64, 80, 22_016, **_LLAMA1),
    "llama-2-7b": _preset(4096, 32, 32, 11_008, **_LLAMA2),
    "llama-2-13b": _preset(5120, 40, 40, 13_824, **_LLAMA2),
    "llama-2-34b": _preset(8192, 64, 48, 22_016, n_kv_heads=8, **_LLAMA2),
    "llama-2-70b": _preset(8192, 64, 80, 28_672, n_kv_heads=8, **_LLAMA2),
    "llama-3-8b": _preset(4096, 32, 32, 14_336, **_LLAMA3),
    "llama-3-70b": _preset(8192, 64, 80, 28_672, **_LLAMA3),
    "llama-3.1-8b": _preset(4096, 32, 32, 14_336, **_LLAMA3_1),
    "llama-3.1-70b": _preset(8192, 64, 80, 28_672, **_LLAMA3_1),
    "llama-3.1-405b": _preset(16_384, 128, 126, 53_248, **_LLAMA3_1),
    "llama-3.2-1b": _preset(2048, 32, 16, 8192, **_LLAMA3_2),
    "llama-3.2-3b": _preset(3072, 24, 28, 8192, **_LLAMA3_2),
}
"""The published sizes. 33B and 65B are the papers' 32.5B and 65.2B. Llama 1's ε is 1e-6, all later ones' 1e-5."""
