"""Conversions there and back, their memory, what they leave behind, and `lamoid convert`."""

import io
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import sentencepiece
import torch
import transformers
from tests.checkpoints.llamas import SCALED, SHAPES, TEMPLATE, random_llama

import lamoid
from lamoid.checkpoints import gguf_write, hf_stream
from lamoid.checkpoints.conversion import convert, open_model
from lamoid.checkpoints.hf import read_model, write_model
from lamoid.checkpoints.store import verify
from lamoid.cli import main
from lamoid.errors import CheckpointError, DataError, UsageError
from lamoid.models.llama import LlamaConfig
from lamoid.recipes.catalogue import models_directory
from lamoid.tokenizers.bpe import train_bpe
from lamoid.tokenizers.char import train_char
from lamoid.tokenizers.gguf_vocabulary import PROBE, find_split, tokenizer_from_gguf, tokenizer_to_gguf
from lamoid.tokenizers.sentencepiece import read_sentencepiece, train_sentencepiece

STRESS = [
    PROBE,
    "",
    " ",
    "  a",
    "a  ",
    "\n\n",
    "1234567",
    "e\u0302\u0301",
    "👩‍👩‍👧‍👦",
    "<|eot_id|>",
    "<s>",
    "x" * 300,
    "한국어 中文",
]
CONFIGS = SHAPES | {
    "scaled": SCALED,
    "biases": replace(SHAPES["grouped"], attention_bias=True, feed_forward_bias=True),
    "more ids than the tokenizer": replace(SHAPES["tied"], vocab_size=410),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_to_gguf_and_back_changes_no_bit(
    config: LlamaConfig, dtype: torch.dtype, model_directory, tmp_path: Path
) -> None:
    source = model_directory(config, dtype=dtype)
    kind = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16"}[dtype]
    proof = convert(open_model(source), tmp_path / "x.gguf")
    convert(open_model(tmp_path / "x.gguf"), tmp_path / "back", dtype=kind)
    assert proof["dtype"] == kind and proof["exact"] and proof["weights"]["largest_difference"] == 0
    assert_equal_directories(source, tmp_path / "back", config)


def test_the_directory_opens_in_transformers(model_directory, tmp_path: Path) -> None:
    convert(open_model(model_directory(SCALED)), tmp_path / "x.gguf")
    convert(open_model(tmp_path / "x.gguf"), tmp_path / "back")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "back", dtype=torch.float32).eval()
    their_tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "back")
    ours, tokenizer = lamoid.load(tmp_path / "x.gguf")
    ids = their_tokenizer(PROBE, split_special_tokens=True)["input_ids"]
    assert ids == tokenizer.encode(PROBE) and their_tokenizer.chat_template == TEMPLATE
    with torch.no_grad():
        expected, got = theirs(torch.tensor([ids])).logits, ours(torch.tensor([ids]))
    assert (got - expected).abs().max() <= 1e-4 * expected.abs().max()
    verify(tmp_path / "back")


def test_large_models_are_written_in_shards(model_directory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hf_stream, "MAX_SHARD_BYTES", 100_000)
    source = model_directory(SHAPES["grouped"])
    convert(open_model(source), tmp_path / "shards")
    files = sorted(p.name for p in (tmp_path / "shards").glob("*.safetensors"))
    assert len(files) > 3 and files[0] == f"model-00001-of-{len(files):05}.safetensors"
    assert_equal_directories(source, tmp_path / "shards", SHAPES["grouped"])
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "shards", dtype=torch.float32)
    assert torch.equal(theirs.lm_head.weight, read_model(source).lm_head.weight)


@pytest.mark.parametrize("kind", ["bpe", "bpe with digits alone", "sentencepiece", "characters"])
def test_a_tokenizer_gives_the_same_ids_from_gguf(kind: str) -> None:
    text = [PROBE] * 5
    tokenizer = {
        "bpe": lambda: train_bpe(text, 400),
        "bpe with digits alone": lambda: train_bpe(text, 400, split_digits=True),
        "sentencepiece": lambda: train_sentencepiece(text, 460, character_coverage=1.0),
        "characters": lambda: train_char(text),
    }[kind]()
    again = tokenizer_from_gguf(tokenizer_to_gguf(tokenizer, tokenizer.vocab_size + 3))
    assert again.vocab_size == tokenizer.vocab_size and again.specials == tokenizer.specials
    for line in STRESS:
        assert again.encode(line) == tokenizer.encode(line)
        assert again.decode(again.encode(line)) == tokenizer.decode(tokenizer.encode(line))


def test_the_pre_tokenizer_is_decided_from_the_pattern(smollm2: Path, tmp_path: Path) -> None:
    assert find_split(train_bpe([PROBE], 300)) == "llama-bpe"
    assert find_split(train_bpe([PROBE], 300, split_digits=True)) == "qwen2"
    assert find_split(open_model(smollm2).tokenizer) == "smollm"
    from tokenizers import pre_tokenizers

    odd = train_bpe([PROBE], 300)
    odd.backend.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Whitespace(), pre_tokenizers.ByteLevel()])
    with pytest.raises(lamoid.DataError, match="no way of splitting words that GGUF knows"):
        find_split(odd)


def test_a_tokenizer_that_llama_cpp_would_understand_otherwise_is_refused() -> None:
    """Each of these was seen there: other ids than the tokenizer's, once a control token made of a user's text."""
    nul = train_char([PROBE + "\0"])
    with pytest.raises(DataError, match=r"token '\\x00' has a U\+0000 in it"):
        tokenizer_to_gguf(nul, nul.vocab_size)
    for removes in (True, False):
        native = train_natively(remove_extra_whitespaces=removes)
        tokenizer = read_sentencepiece(native)
        if removes:
            with pytest.raises(DataError, match="removes extra spaces, which llama.cpp does not do"):
                tokenizer_to_gguf(tokenizer, tokenizer.vocab_size)
        else:
            tokenizer_to_gguf(tokenizer, tokenizer.vocab_size)
    injected = read_sentencepiece(train_natively("a</s p</s q</s", split_by_unicode_script=False))
    with pytest.raises(DataError, match=r"pieces '</s' \+ '>' spell a special token"):
        tokenizer_to_gguf(injected, injected.vocab_size)


def train_natively(more: str = "", **settings: bool) -> bytes:
    file = io.BytesIO()
    normal = {"normalization_rule_name": "identity", "byte_fallback": True, "remove_extra_whitespaces": False}
    options = {"model_type": "bpe", "vocab_size": 460, "minloglevel": 2} | normal | settings
    lines = iter([*PROBE.split("\n") * 20, *[more] * 100])
    sentencepiece.SentencePieceTrainer.train(sentence_iterator=lines, model_writer=file, **options)
    return file.getvalue()


def test_user_defined_tokens_part_a_text_as_in_llama_cpp() -> None:
    """Each stretch between them has the space in front that the whole text has; tests/peers sees llama.cpp do it."""
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", "a", "▁a", "<t>"]
    types = [2, 3, 3, *[6] * 256, 1, 1, 1, 4]
    scores = [0.0] * 259 + [-2.0, -3.0, -1.0, 0.0]
    metadata = {"model": "llama", "tokens": tokens, "token_type": types, "scores": scores}
    tokenizer = tokenizer_from_gguf({f"tokenizer.ggml.{key}": value for key, value in metadata.items()})
    assert tokenizer.encode("a<t>a<t> a", add_special_tokens=False) == [261, 262, 261, 262, 259, 261]
    assert tokenizer.encode("<t>aa", add_special_tokens=False) == [262, 261, 260]
    written = tokenizer_to_gguf(tokenizer, 263)
    assert tokenizer_from_gguf(written).encode("a<t>a") == tokenizer.encode("a<t>a")


def test_an_existing_target_is_left_alone(model_directory, tmp_path: Path) -> None:
    (tmp_path / "x.gguf").write_text("mine")
    with pytest.raises(UsageError, match="exists"):
        convert(open_model(model_directory(SHAPES["tied"])), tmp_path / "x.gguf")
    assert (tmp_path / "x.gguf").read_text() == "mine"


def test_weights_that_a_format_cannot_hold_are_refused_and_nothing_is_left(model_directory, tmp_path: Path) -> None:
    source = model_directory(SHAPES["tied"])
    model = read_model(source)
    with torch.no_grad():
        model.layers[1].feed_forward.up_proj.weight[3, 5] = 1e6
    write_model(source, model, None)
    for target, dtype in (("x.gguf", "F16"), ("hf", "F16")):
        with pytest.raises(CheckpointError, match=r"layers\.1\.feed_forward\.up_proj\.weight holds a weight of 1e\+06"):
            convert(open_model(source), tmp_path / "out" / target, dtype=dtype)
    assert list((tmp_path / "out").iterdir()) == []


def test_the_command(model_directory, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, file = model_directory(SHAPES["tied"]), tmp_path / "x.gguf"
    assert main(["convert", str(source), str(file), "--dtype", "q8_0", "--json"]) == 0
    proof = json.loads(capsys.readouterr().out)
    assert proof == json.loads((tmp_path / "x.certificate.json").read_text())
    assert main(["convert", str(source), str(file)]) == 2
    assert "exists" in capsys.readouterr().err
    assert main(["convert", str(tmp_path), str(tmp_path / "y.gguf")]) == 3
    assert main(["convert", str(source), str(tmp_path / "y"), "--dtype", "q4_0"]) == 2
    assert "hf can have f32, f16, bf16" in capsys.readouterr().err


def test_a_fetched_model_is_converted_by_its_name(
    model_directory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert main(["convert", "smollm2", str(tmp_path / "x.gguf")]) == 3
    assert "lamoid get smollm2" in capsys.readouterr().err
    models_directory().mkdir(parents=True)
    model_directory(SHAPES["tied"]).rename(models_directory() / "smollm2")
    assert main(["convert", "smollm2", str(tmp_path / "x.gguf")]) == 0
    assert open_model(tmp_path / "x.gguf").config == SHAPES["tied"]


def test_a_writer_that_corrupts_leaves_nothing(
    model_directory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Q and K written without being permuted: the commonest fault of converters."""
    source = model_directory(SHAPES["tied"])
    monkeypatch.setattr(gguf_write, "split_rows", lambda rows, head_dim: rows)
    for dtype in ("f32", "q4_0"):
        assert main(["convert", str(source), str(tmp_path / "out" / "x.gguf"), "--dtype", dtype]) == 4
        assert "the certificate failed: layers.0.attention.q_proj.weight" in capsys.readouterr().err
    assert list((tmp_path / "out").iterdir()) == []


def test_memory_does_not_grow_with_the_model(model_directory, tmp_path: Path) -> None:
    """Written, read again and compared: 420 MB of weights, of which the largest tensor has 131 MB.

    A small model goes first: what is imported on the way takes 150 MB by itself.
    """
    large = tmp_path / "large"
    large.mkdir()
    write_model(large, random_llama(LlamaConfig(32_000, 1024, 4, 8, 8, 128, 2048, 512)), None)
    assert (large / "model.safetensors").stat().st_size > 400e6
    program = (
        "import re, sys, torch\n"
        "from pathlib import Path\n"
        "from lamoid.checkpoints.conversion import convert, open_model\n"
        "torch.set_num_threads(1)\n"
        "def peak(source: Path) -> int:\n"
        "    convert(open_model(source), source.with_suffix('.gguf'), dtype='Q8_0')\n"
        "    convert(open_model(source.with_suffix('.gguf')), source.with_suffix('.meta'), kind='meta')\n"
        "    return int(re.search(r'VmHWM:\\s+(\\d+)', Path('/proc/self/status').read_text())[1]) * 1024\n"
        "small, large = map(peak, map(Path, sys.argv[1:]))\n"
        "print(large - small)"
    )
    sources = [str(model_directory(SHAPES["grouped"], name="small")), str(large)]
    done = subprocess.run([sys.executable, "-c", program, *sources], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 300e6, f"{int(done.stdout):,} bytes"


def assert_equal_directories(first: Path, second: Path, config: LlamaConfig) -> None:
    ours, theirs = open_model(first), open_model(second)
    assert theirs.config == config and theirs.formats == ours.formats and theirs.tokenizer.chat_template == TEMPLATE
    for name, shape in ours.shapes.items():
        rows = np.arange(shape[0])
        assert torch.equal(ours.read(name, rows), theirs.read(name, rows)), name
    for text in STRESS:
        assert ours.tokenizer.encode(text) == theirs.tokenizer.encode(text)
    assert ours.tokenizer.specials == theirs.tokenizer.specials
