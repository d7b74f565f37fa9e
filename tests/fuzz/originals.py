"""Small models and tokenizers, all in order, that the mutants are made of."""

import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import sentencepiece
import tokenizers as runtime
import torch
from tests.checkpoints.gguf_files import written_by_peer
from tests.checkpoints.llamas import LLAMA3, SHAPES, random_llama
from tokenizers import models, pre_tokenizers

from lamoid.adapt.lora import LoraConfig, add_lora
from lamoid.adapt.nf4 import Nf4Config, quantize_base
from lamoid.checkpoints import hf_stream
from lamoid.checkpoints.conversion import convert, open_model
from lamoid.checkpoints.hf import read_model, write_model
from lamoid.checkpoints.peft import write_adapter
from lamoid.models.bert import Bert, BertConfig
from lamoid.models.gpt2 import GPT2, GPT2Config
from lamoid.models.heads import attach_head
from lamoid.models.roberta import Roberta, RobertaConfig
from lamoid.models.transformer import Transformer, TransformerConfig
from lamoid.models.variant import Variant, VariantConfig
from lamoid.nn.rope_scaling import LinearScaling, YarnScaling
from lamoid.tokenizers.bpe import train_bpe
from lamoid.tokenizers.char import train_char
from lamoid.tokenizers.gguf_vocabulary import PROBE
from lamoid.tokenizers.gpt2 import train_gpt2, train_roberta
from lamoid.tokenizers.sentencepiece import read_sentencepiece
from lamoid.tokenizers.tiktoken import write_tiktoken
from lamoid.tokenizers.tokenizer import Tokenizer
from lamoid.tokenizers.wordpiece import train_wordpiece

TEMPLATES = {
    "llama": (
        "{{ bos_token }}{% for m in messages %}{{ '<|start_header_id|>' + m['role'] + '<|end_header_id|>\\n\\n' }}"
        "{{ m['content'] | trim + '<|eot_id|>' }}{% endfor %}{% if add_generation_prompt %}assistant{% endif %}"
    ),
    "tools": (
        "{%- set ns = namespace(system='') -%}{%- for m in messages if m.role != 'tool' -%}"
        "{%- if m.role == 'system' %}{% set ns.system = m.content %}{% continue %}{%- endif -%}"
        "{{ '<|' ~ m.role ~ '|>' }}{{ m.content.split('\\n') | join(' ') }}{{ ns.system | tojson(indent=2) }}"
        "{%- if loop.last and add_generation_prompt %} {{ eos_token }} {%- endif -%}{%- endfor -%}"
    ),
}


def write_originals(root: Path) -> None:
    """A folder for each name in KINDS."""
    shape = replace(SHAPES["grouped"], d_model=32, head_dim=8, d_ff=64, vocab_size=320)
    tokenizer = train_bpe([PROBE] * 3, 320)
    for name, config in {
        "plain": shape,
        "half": replace(shape, tied_embeddings=True),
        "scaled": replace(shape, rope_scaling=LLAMA3),
        "linear": replace(shape, rope_scaling=LinearScaling(4.0), n_kv_heads=1, attention_bias=True),
        "yarn": replace(shape, rope_scaling=YarnScaling(4.0, 64, attention_factor=1.5), feed_forward_bias=True),
        "old": replace(shape, n_kv_heads=4),
    }.items():
        model = random_llama(config).to(torch.bfloat16 if name == "half" else torch.float32)
        write_model(_new(root, name), model, tokenizer if name == "plain" else None)
    old = {
        "model_type": "llama",
        "hidden_size": 32,
        "num_attention_heads": 4,
        "num_hidden_layers": 2,
        "vocab_size": 320,
    }
    old |= {"intermediate_size": 64, "max_position_embeddings": 128, "rope_scaling": {"type": "dynamic", "factor": 2.0}}
    (root / "old" / "config.json").write_text(json.dumps(old | {"rope_theta": 10_000, "rms_norm_eps": 1e-5}))
    source = open_model(root / "plain")
    convert(source, root / "plain" / "plain.gguf", dtype="Q8_0")
    for name in ("scaled", "yarn"):
        convert(open_model(root / name), root / name / f"{name}.gguf")
    convert(open_model(root / "scaled"), root / "meta", kind="meta")
    _write_sharded(root / "sharded", source)
    _write_tokenizers(root, tokenizer)
    _write_others(root)
    lora = add_lora(quantize_base(read_model(root / "plain"), Nf4Config()), LoraConfig(3))
    write_adapter(_new(root, "lora"), lora, None, root / "plain")
    pieces = read_sentencepiece((root / "pieces0" / "tokenizer.model").read_bytes())
    write_model(_new(root, "pieces"), random_llama(replace(shape, vocab_size=pieces.vocab_size)), pieces)
    convert(open_model(root / "pieces"), root / "pieces" / "pieces.gguf")
    written_by_peer(_new(root, "formats"), None)


def _new(root: Path, name: str) -> Path:
    (root / name).mkdir()
    return root / name


def _write_sharded(folder: Path, source: Any) -> None:
    before, hf_stream.MAX_SHARD_BYTES = hf_stream.MAX_SHARD_BYTES, 80_000
    try:
        convert(source, folder)
    finally:
        hf_stream.MAX_SHARD_BYTES = before
    assert len(list(folder.glob("model-*-of-00002.safetensors"))) == 2
    (folder / "folder").mkdir()


def _write_others(root: Path) -> None:
    """The models that are no Llamas, those with tokenizers of their own with these."""
    text = [PROBE] * 3
    for name, model, tokenizer in (
        ("gpt2", GPT2(GPT2Config(400, 12, 2, 3, 20, 32)), train_gpt2(text, 400)),
        (
            "bert",
            attach_head(Bert(BertConfig(400, 12, 2, 3, 20, 32)), "token", 0, ("a", "ê")),
            train_wordpiece(text, 300),
        ),
        ("roberta", attach_head(Roberta(RobertaConfig(400, 12, 2, 3, 20, 32)), "mlm", 0), train_roberta(text, 400)),
        ("seq2seq", Transformer(TransformerConfig(40, 12, 2, 3, 20)), None),
        ("variant", Variant(VariantConfig(40, 12, 2, 3, 1, 4, 20, 32)), None),
    ):
        write_model(_new(root, name), model, tokenizer)
        (root / name / "tokenizer.json").unlink(missing_ok=True)  # so that the native files are read


def _write_tokenizers(root: Path, bpe: Tokenizer) -> None:
    text = [PROBE, "the cat sat on the mat and the dog sat on the log; một con mèo " * 3] * 3
    _write(root, "bpe", bpe)
    _write(root, "char", train_char(text, 400))
    for number, settings in enumerate(({}, {"add_dummy_prefix": False, "user_defined_symbols": ["<think>", "▁▁"]})):
        tokenizer = read_sentencepiece(train_pieces(text, **settings))
        folder = _new(root, f"pieces{number}")
        (folder / "tokenizer.model").write_bytes(tokenizer.native["tokenizer.model"])
    _write(root, "pieces-json", Tokenizer(tokenizer.backend, tokenizer.specials))
    words = {word: i for i, word in enumerate(dict.fromkeys(["[UNK]", "[CLS]", "[SEP]", *" ".join(text).split()]))}
    letters = {letter: len(words) + i for i, letter in enumerate("abcdefghijklmnopqrstuvwxyz") if letter not in words}
    for name, model in {
        "wordlevel": models.WordLevel(words, "[UNK]"),
        "wordpiece": models.WordPiece(words | letters, unk_token="[UNK]"),
        "unigram": models.Unigram([(word, -float(i)) for word, i in (words | letters).items()], 0, True),
    }.items():
        backend = runtime.Tokenizer(model)
        backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        backend.add_special_tokens(["[CLS]", "[SEP]"])
        _write(root, name, Tokenizer(backend, {"cls": "[CLS]"}))
    (_new(root, "tiktoken") / "tokenizer.model").write_bytes(write_tiktoken(train_bpe(text, 400)))
    (root / "tiktoken" / "tokenizer_config.json").write_text('{"add_bos_token": true, "eos_token": "<|end_of_text|>"}')
    for name, template in TEMPLATES.items():
        _write(root, f"chat-{name}", Tokenizer(bpe.backend, bpe.specials, chat_template=template))


def train_pieces(text: list[str], **settings: object) -> bytes:
    """A SentencePiece file as Llama 2's was trained."""
    file = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=(line for part in text for line in part.split("\n")),
        model_writer=file,
        model_type="bpe",
        vocab_size=450,
        character_coverage=0.98,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        byte_fallback=True,
        num_threads=1,
        minloglevel=2,
        **settings,
    )
    return file.getvalue()


def _write(root: Path, name: str, tokenizer: Tokenizer) -> None:
    folder = _new(root, name)
    for file, content in tokenizer.files().items():
        (folder / file).write_bytes(content)
