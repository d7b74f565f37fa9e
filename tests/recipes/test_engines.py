"""Which engine decodes, what is said about it, and the verbs around it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from tests.checkpoints.llamas import SHAPES, random_llama
from tests.inference.native.blocks import PATHS

import lamoid
from lamoid.checkpoints.hf import write_model
from lamoid.cli import main
from lamoid.errors import EngineUnavailable
from lamoid.inference.native import library
from lamoid.models.gpt2 import GPT2, GPT2Config
from lamoid.tokenizers.bpe import train_bpe

TEMPLATE = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
TEXT = "the cat sat on the mat, một con mèo, 猫坐在垫子上, 고양이. " * 20


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    tokenizer = train_bpe([TEXT], 400)
    config = SHAPES["tied"]
    write_model(folder, random_llama(config), tokenizer)
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    return folder


@pytest.fixture(scope="module")
def quantized(directory: Path) -> Path:
    file = directory.parent / "model" / "small.gguf"
    file.parent.mkdir(exist_ok=True)
    assert main(["quantize", str(directory), "--format", "q8_0", "--out", str(file), "--threads", "1"]) == 0
    return file


def generate(capsys, *arguments: object) -> tuple[str, str]:
    assert main(["generate", *map(str, arguments), "--max-new-tokens", "12", "--threads", "1"]) == 0
    out, err = capsys.readouterr()
    return out, err


def test_the_native_engine_decodes_by_itself_and_says_so(directory, quantized, capsys, monkeypatch):
    greedy = ("một con mèo", "--temperature", 0)
    native, err = generate(capsys, directory, *greedy)
    assert err == ""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    assert generate(capsys, directory, *greedy)[0] == native
    by_torch, err = generate(capsys, directory, *greedy, "--engine", "torch")
    assert "native" not in err and native == by_torch
    assert generate(capsys, directory, *greedy, "--speculate")[0] == native
    _, err = generate(capsys, quantized, *greedy)
    assert err.splitlines()[0] == f"note: the native engine decodes Q8_0 weights ({PATHS[0]}, 1 threads)"


def test_torch_takes_over_with_the_reason(directory, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(library, "FOLDER", tmp_path)
    library.library.cache_clear()
    try:
        _, err = generate(capsys, directory, "the cat")
        assert err.startswith("note: torch decodes, not the native engine: the kernels were not compiled")
        assert main(["generate", str(directory), "the cat", "--engine", "native"]) == 2
        assert "not compiled" in capsys.readouterr().err
        assert main(["generate", str(directory), "the cat", "--speculate"]) == 2
    finally:
        library.library.cache_clear()


def test_other_architectures_are_left_to_torch(tmp_path, capsys):
    tokenizer = train_bpe([TEXT], 400)
    shape = dict(vocab_size=400, d_model=16, n_layers=1, n_heads=2, d_ff=32, max_seq_len=64)
    write_model(tmp_path, GPT2(GPT2Config(**shape)), tokenizer)
    assert "gpt2" in generate(capsys, tmp_path, "the cat")[1]
    with pytest.raises(EngineUnavailable, match="gpt2"):
        lamoid.load_engine(tmp_path)
    assert main(["generate", str(tmp_path), "the cat", "--engine", "torch", "--speculate"]) == 2


def test_load_engine(directory, quantized):
    for path in (directory, quantized):
        decoder, tokenizer = lamoid.load_engine(path, threads=1)
        logits = decoder.prefill([tokenizer.encode("the cat")])
        assert logits.shape == (1, SHAPES["tied"].vocab_size)


_WATCHED = "import sys; from lamoid.cli import main; code = main(sys.argv[1:]); assert 'torch' not in sys.modules; sys.exit(code)"


@pytest.mark.parametrize("verb", ["generate", "chat", "bench"])
def test_no_torch_is_imported(verb, directory, quantized):
    for path in (quantized, directory):
        rest = {"generate": ["the cat"], "chat": ["--template", str(directory / "chat_template.jinja")], "bench": []}[
            verb
        ]
        rest += ["--prompt-tokens", "9", "--rounds", "1"] if verb == "bench" else []
        size = ["--new-tokens" if verb == "bench" else "--max-new-tokens", "5", "--threads", "1"]
        command = [sys.executable, "-c", _WATCHED, verb, str(path), *rest, *size]
        done = subprocess.run(command, input="the cat\n", capture_output=True, text=True, timeout=120, env=os.environ)
        assert done.returncode == 0, done.stderr
        assert done.stdout.strip()


def test_bench(quantized, capsys):
    small = ["--prompt-tokens", "10", "--new-tokens", "5", "--rounds", "2", "--threads", "1"]
    assert main(["bench", str(quantized), *small]) == 0
    assert "GB/s" in capsys.readouterr().out
    assert main(["bench", str(quantized), *small, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["bytes_per_token"] > 0 and 0 < found["share"] < 1
    assert found["decode_bytes_per_s"] == found["decode_tokens_per_s"] * found["bytes_per_token"]
    assert main(["bench", str(quantized), "--prompt-tokens", "9999"]) == 2
    assert main(["bench", str(quantized), "--rounds", "0"]) == 2
    assert main(["bench"]) == 2


def test_quantize(directory, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["quantize", str(directory), "--format", "q4_1", "--threads", "1"]) == 0
    assert (tmp_path / f"{directory.name}-q4_1.gguf").is_file()
    assert "perplexity" in capsys.readouterr().out
    assert main(["quantize", str(directory), "--out", "model.bin"]) == 2
    assert main(["quantize", str(directory), "--format", "q2_k"]) == 2
    assert main(["quantize"]) == 2


def test_chat_reads_its_history_once(directory, monkeypatch):
    from lamoid.recipes.conversation import open_conversation
    from lamoid.recipes.settings import ChatSettings

    settings = ChatSettings(
        model=str(directory), max_new_tokens=6, threads=1, template=str(directory / "chat_template.jinja")
    )
    chat = open_conversation(settings, lambda text: None)
    list(chat.ask("the cat"))
    computed, model = [], chat.decoder.model  # type: ignore[attr-defined]
    forward = model.forward
    monkeypatch.setattr(model, "forward", lambda ids, *rest: computed.append(len(ids)) or forward(ids, *rest))
    list(chat.ask("mèo"))
    assert sum(computed) < len(chat.encoder.encode(chat.messages())) - 10


def test_smollm2_by_its_name_is_its_gguf_file(smollm2):
    decoder, tokenizer = lamoid.load_engine("smollm2")
    assert {t.type_name for t in decoder.model.weights.tensors.values()} == {"F32", "Q4_1", "Q8_0"}
    ids = tokenizer.encode("The capital of France is")
    logits = decoder.prefill([ids])
    for _ in range(3):
        ids.append(int(logits[0].argmax()))
        logits = decoder.step(ids[-1:])
    assert "Paris" in tokenizer.decode(ids)
