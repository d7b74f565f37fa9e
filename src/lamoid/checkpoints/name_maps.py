"""Other people's spellings of our names: tensors and configuration fields."""

import re

LLAMA_FIELDS = {
    "vocab_size": "vocab_size",
    "d_model": "hidden_size",
    "n_layers": "num_hidden_layers",
    "n_heads": "num_attention_heads",
    "n_kv_heads": "num_key_value_heads",
    "head_dim": "head_dim",
    "d_ff": "intermediate_size",
    "max_seq_len": "max_position_embeddings",
    "norm_eps": "rms_norm_eps",
    "tied_embeddings": "tie_word_embeddings",
    "attention_bias": "attention_bias",
    "feed_forward_bias": "mlp_bias",
    "init_std": "initializer_range",
}
"""LlamaConfig's fields in Hugging Face's config.json; RoPE's are nested there (see `hf.py`)."""

_LLAMA_TENSORS = [
    (r"embedding\.", "model.embed_tokens."),
    (r"norm\.", "model.norm."),
    (r"layers\.(\d+)\.attention_norm\.", r"model.layers.\1.input_layernorm."),
    (r"layers\.(\d+)\.feed_forward_norm\.", r"model.layers.\1.post_attention_layernorm."),
    (r"layers\.(\d+)\.attention\.", r"model.layers.\1.self_attn."),
    (r"layers\.(\d+)\.feed_forward\.", r"model.layers.\1.mlp."),
]
_TENSORS_OF_HF = [
    (r"model\.embed_tokens\.", "embedding."),
    (r"model\.norm\.", "norm."),
    (r"model\.layers\.(\d+)\.input_layernorm\.", r"layers.\1.attention_norm."),
    (r"model\.layers\.(\d+)\.post_attention_layernorm\.", r"layers.\1.feed_forward_norm."),
    (r"model\.layers\.(\d+)\.self_attn\.", r"layers.\1.attention."),
    (r"model\.layers\.(\d+)\.mlp\.", r"layers.\1.feed_forward."),
]
_GGUF_TENSORS = [
    (r"embedding\.", "token_embd."),
    (r"norm\.", "output_norm."),
    (r"lm_head\.", "output."),
    (r"layers\.(\d+)\.attention_norm\.", r"blk.\1.attn_norm."),
    (r"layers\.(\d+)\.feed_forward_norm\.", r"blk.\1.ffn_norm."),
    (r"layers\.(\d+)\.attention\.o_proj\.", r"blk.\1.attn_output."),
    (r"layers\.(\d+)\.attention\.([qkv])_proj\.", r"blk.\1.attn_\2."),
    (r"layers\.(\d+)\.feed_forward\.(gate|up|down)_proj\.", r"blk.\1.ffn_\2."),
]
_META_TENSORS = [
    (r"embedding\.", "tok_embeddings."),
    (r"lm_head\.", "output."),
    (r"layers\.(\d+)\.feed_forward_norm\.", r"layers.\1.ffn_norm."),
    (r"layers\.(\d+)\.attention\.([qkvo])_proj\.", r"layers.\1.attention.w\2."),
    (r"layers\.(\d+)\.feed_forward\.gate_proj\.", r"layers.\1.feed_forward.w1."),
    (r"layers\.(\d+)\.feed_forward\.down_proj\.", r"layers.\1.feed_forward.w2."),
    (r"layers\.(\d+)\.feed_forward\.up_proj\.", r"layers.\1.feed_forward.w3."),
]


def llama_to_hf(name: str) -> str:
    """`layers.0.attention.q_proj.weight` → `model.layers.0.self_attn.q_proj.weight`."""
    return _rename(name, _LLAMA_TENSORS)


def llama_from_hf(name: str) -> str:
    """`model.layers.0.self_attn.q_proj.weight` → `layers.0.attention.q_proj.weight`."""
    return _rename(name, _TENSORS_OF_HF)


def llama_to_gguf(name: str) -> str:
    """`layers.0.attention.q_proj.weight` → `blk.0.attn_q.weight`."""
    return _rename(name, _GGUF_TENSORS)


def llama_to_meta(name: str) -> str:
    """`layers.0.attention.q_proj.weight` → `layers.0.attention.wq.weight`."""
    return _rename(name, _META_TENSORS)


def _rename(name: str, table: list[tuple[str, str]]) -> str:
    for pattern, replacement in table:
        renamed, n_replaced = re.subn(f"^{pattern}", replacement, name)
        if n_replaced:
            return renamed
    return name
