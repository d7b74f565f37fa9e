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


def llama_to_hf(name: str) -> str:
    """`layers.0.attention.q_proj.weight` → `model.layers.0.self_attn.q_proj.weight`."""
    for pattern, replacement in _LLAMA_TENSORS:
        renamed, n_replaced = re.subn(f"^{pattern}", replacement, name)
        if n_replaced:
            return renamed
    return name
