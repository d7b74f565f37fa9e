"""Other people's spellings of our names: tensors and configuration fields."""

from lamoid.checkpoints.config_fields import rename

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
"""LlamaConfig's fields in Hugging Face's config.json; RoPE's are nested there (see `hf_llama.py`)."""

_LLAMA_TENSORS = [
    (r"embedding\.", "model.embed_tokens."),
    (r"norm\.", "model.norm."),
    (r"layers\.(\d+)\.attention_norm\.", r"model.layers.\1.input_layernorm."),
    (r"layers\.(\d+)\.feed_forward_norm\.", r"model.layers.\1.post_attention_layernorm."),
    (r"layers\.(\d+)\.attention\.", r"model.layers.\1.self_attn."),
    (r"layers\.(\d+)\.feed_forward\.", r"model.layers.\1.mlp."),
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
    return rename(name, _LLAMA_TENSORS)


def llama_to_gguf(name: str) -> str:
    """`layers.0.attention.q_proj.weight` → `blk.0.attn_q.weight`."""
    return rename(name, _GGUF_TENSORS)


def llama_to_meta(name: str) -> str:
    """`layers.0.attention.q_proj.weight` → `layers.0.attention.wq.weight`."""
    return rename(name, _META_TENSORS)


GPT2_FIELDS = {
    "vocab_size": "vocab_size",
    "d_model": "n_embd",
    "n_layers": "n_layer",
    "n_heads": "n_head",
    "d_ff": "n_inner",
    "max_seq_len": "n_positions",
    "norm_eps": "layer_norm_epsilon",
    "tied_embeddings": "tie_word_embeddings",
    "embedding_dropout": "embd_pdrop",
    "attention_dropout": "attn_pdrop",
    "residual_dropout": "resid_pdrop",
    "init_std": "initializer_range",
}
GPT2_TENSORS = [
    (r"embedding\.", "transformer.wte."),
    (r"position_embedding\.", "transformer.wpe."),
    (r"norm\.", "transformer.ln_f."),
    (r"layers\.(\d+)\.attention_norm\.", r"transformer.h.\1.ln_1."),
    (r"layers\.(\d+)\.feed_forward_norm\.", r"transformer.h.\1.ln_2."),
    (r"layers\.(\d+)\.attention\.([qkv])_proj\.", r"transformer.h.\1.attn.c_attn.\2."),
    (r"layers\.(\d+)\.attention\.o_proj\.", r"transformer.h.\1.attn.c_proj."),
    (r"layers\.(\d+)\.feed_forward\.up_proj\.", r"transformer.h.\1.mlp.c_fc."),
    (r"layers\.(\d+)\.feed_forward\.down_proj\.", r"transformer.h.\1.mlp.c_proj."),
]
"""Q, K and V are one tensor there, `attn.c_attn`; `hf_gpt2.py` joins them."""

BERT_FIELDS = {
    "vocab_size": "vocab_size",
    "d_model": "hidden_size",
    "n_layers": "num_hidden_layers",
    "n_heads": "num_attention_heads",
    "d_ff": "intermediate_size",
    "max_seq_len": "max_position_embeddings",
    "n_segments": "type_vocab_size",
    "norm_eps": "layer_norm_eps",
    "tied_embeddings": "tie_word_embeddings",
    "dropout": "hidden_dropout_prob",
    "attention_dropout": "attention_probs_dropout_prob",
    "head_dropout": "classifier_dropout",
    "init_std": "initializer_range",
    "pad_id": "pad_token_id",
}
"""BertConfig's and RobertaConfig's fields."""
ENCODER_TENSORS = [
    (r"embedding\.", "embeddings.word_embeddings."),
    (r"position_embedding\.", "embeddings.position_embeddings."),
    (r"segment_embedding\.", "embeddings.token_type_embeddings."),
    (r"embedding_norm\.", "embeddings.LayerNorm."),
    (r"layers\.(\d+)\.attention\.q_proj\.", r"encoder.layer.\1.attention.self.query."),
    (r"layers\.(\d+)\.attention\.k_proj\.", r"encoder.layer.\1.attention.self.key."),
    (r"layers\.(\d+)\.attention\.v_proj\.", r"encoder.layer.\1.attention.self.value."),
    (r"layers\.(\d+)\.attention\.o_proj\.", r"encoder.layer.\1.attention.output.dense."),
    (r"layers\.(\d+)\.attention_norm\.", r"encoder.layer.\1.attention.output.LayerNorm."),
    (r"layers\.(\d+)\.feed_forward\.up_proj\.", r"encoder.layer.\1.intermediate.dense."),
    (r"layers\.(\d+)\.feed_forward\.down_proj\.", r"encoder.layer.\1.output.dense."),
    (r"layers\.(\d+)\.feed_forward_norm\.", r"encoder.layer.\1.output.LayerNorm."),
]
"""The encoder of BERT and RoBERTa; where it has a head, `bert.` or `roberta.` stands in front."""
BERT_HEADS = {
    "mlm": [
        (r"dense\.", "cls.predictions.transform.dense."),
        (r"norm\.", "cls.predictions.transform.LayerNorm."),
        (r"decoder\.", "cls.predictions.decoder."),
    ],
    "nsp": [(r"pooler\.", "bert.pooler."), (r"linear\.", "cls.seq_relationship.")],
    "sequence": [(r"pooler\.", "bert.pooler."), (r"linear\.", "classifier.")],
    "span": [(r"linear\.", "qa_outputs.")],
    "token": [(r"linear\.", "classifier.")],
}
ROBERTA_HEADS = {
    "mlm": [(r"dense\.", "lm_head.dense."), (r"norm\.", "lm_head.layer_norm."), (r"decoder\.", "lm_head.decoder.")],
    "sequence": [(r"pooler\.", "classifier."), (r"linear\.", "classifier.out_proj.")],
    "span": [(r"linear\.", "qa_outputs.")],
    "token": [(r"linear\.", "classifier.")],
}
"""The tensors of each head; of a tied MLM head, the decoder's bias is called otherwise (see `hf_bert.py`)."""
