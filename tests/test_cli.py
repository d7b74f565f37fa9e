"""The command line as a user meets it: quick help, exit codes, errors on one line, JSON in every script."""

import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from importlib.metadata import version

import pytest
import torch
import transformers

import lamoid
from lamoid.checkpoints.hf import write_model
from lamoid.cli import VERBS, main
from lamoid.inference.score import score
from lamoid.models.llama import Llama, LlamaConfig
from lamoid.tokenizers.bpe import DIGITS_IN_THREES, WORDS, train_bpe

SCRIPTS = {
    "Vietnamese": "Tiếng Việt có nhiều dấu thanh, rất đẹp.",
    "decomposed": "Tie\u0302\u0301ng Vie\u0323\u0302t",
    "Chinese": "大型语言模型可以理解文本。",
    "Korean": "한국어 문장은 이렇게 생겼습니다.",
    "emoji": "👩‍👩‍👧‍👦 🏳️‍🌈 👍🏽 ok",
    "Arabic": "مرحبا بالعالم (hello) ١٢٣",
    "Hebrew": "\u202bשלום\u202c עולם",
}


@pytest.fixture(autouse=True)
def no_settings_in_the_environment(monkeypatch):
    for name in [name for name in os.environ if name.startswith("LAMOID_")]:
        monkeypatch.delenv(name)


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    """A tiny Llama with a tokenizer that knows the scripts above."""
    path = tmp_path_factory.mktemp("model")
    tokenizer = train_bpe(list(SCRIPTS.values()) * 3, 400)
    config = LlamaConfig(tokenizer.vocab_size, 32, 2, 4, 2, 8, 48, max_seq_len=128, init_std=0.3)
    write_model(path, Llama(config).initialise(0), tokenizer)
    return path


@pytest.fixture
def call(capsys):
    """Run a command in this process: (exit code, standard output, standard error)."""

    def run(*words):
        capsys.readouterr()
        code = main([str(word) for word in words])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


def shell(*words, **settings):
    command = [sys.executable, "-m", "lamoid.cli", *map(os.fsencode, map(str, words))]
    return subprocess.run(command, capture_output=True, timeout=60, **settings)


def assert_one_line(error):
    assert error.startswith("lamoid: ")
    assert error.endswith("\n")
    assert error.count("\n") == 1
    assert "Traceback" not in error


def test_help_is_there_at_once():
    """Median of five, in a new process each."""

    def seconds():
        began = time.perf_counter()
        result = shell("--help")
        assert result.returncode == 0
        assert all(f"lamoid {verb}".encode() in result.stdout for verb in VERBS)
        return time.perf_counter() - began

    assert statistics.median(seconds() for _ in range(5)) < 0.3


@pytest.mark.parametrize(
    "words", [["--help"], [], ["--version"], *([*v.split(), "--help"] for v in VERBS)], ids=" ".join
)
def test_help_imports_nothing_heavy(words):
    code = (
        "import sys\nfrom lamoid.cli import main\n"
        f"try:\n    main({words})\nexcept SystemExit as left:\n    assert left.code == 0\n"
        "print({'torch', 'numpy', 'tokenizers', 'transformers', 'safetensors'} & set(sys.modules))"
    )
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert output.splitlines()[-1] == "set()"


def test_the_library_itself_imports_nothing_heavy():
    code = "import sys, lamoid; print({'torch', 'numpy', 'tokenizers'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "set()\n"


def test_version(call):
    assert call("--version") == (0, f"lamoid {version('lamoid')}\n", "")


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["fly"], "'fly' is no verb; known are tokenizer train, "),
        (["tokenizer"], "'tokenizer' is no verb"),
        (["tokenizer", "trane"], "'tokenizer trane' is no verb; known are tokenizer train, tokenizer show (see"),
        (["lab"], "'lab' is no verb; known are lab list, lab run, lab report (see"),
        (["tokenizer", "train"], "--data and --out are needed"),
        (["tokenizer", "train", "--data", "x"], "--data and --out are needed"),
        (["tokenizer", "show"], "a tokenizer and a text are needed"),
        (["pretrain"], "--data and --out are needed"),
        (["eval", "x"], "a model and --text are needed"),
        (["generate"], "a model and a prompt are needed"),
        (["generate", "x", "y", "--temprature", "1"], "--temprature is no flag; did you mean --temperature?"),
        (["generate", "x", "y", "--temperature=-1"], "temperature is -1.0; it must be 0 (greedy) or above"),
        (["generate", "x", "y", "--temperature", "nan"], "temperature is nan"),
        (["generate", "x", "y", "--top-p", "0"], "top_p is 0.0"),
        (["generate", "x", "y", "--top-p", "2"], "top_p is 2.0"),
        (["generate", "x", "y", "--top-k=-1"], "top_k is -1"),
        (["generate", "x", "y", "--top-k", "few"], "top_k is 'few'; it must be a whole number"),
        (["generate", "x", "y", "--min-p", "3"], "min_p is 3.0"),
        (["generate", "x", "y", "--repetition-penalty", "0"], "repetition_penalty is 0.0"),
    ],
    ids=str,
)
def test_a_wrong_call_ends_with_2(call, words, part):
    code, output, error = call(*words)
    assert (code, output) == (2, "")
    assert_one_line(error)
    assert part in error


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["--seed=-1", "--max-new-tokens", "5"], "seed is -1"),
        (["--seed", str(2**63), "--max-new-tokens", "5"], f"seed is {2**63}"),
        (["--max-new-tokens", "0"], "max_new_tokens is 0"),
        (["--max-new-tokens", "200"], "prompt tokens + max_new_tokens 200 exceed the context of 128"),
        (["--stop", ""], "stop is ['']"),
    ],
    ids=str,
)
@pytest.mark.parametrize("form", [[], ["--json"]], ids=["text", "json"])
def test_a_value_out_of_range_ends_with_2_before_anything_is_printed(call, directory, words, part, form):
    code, output, error = call("generate", directory, "hello", *form, *words)
    assert (code, output) == (2, "")
    assert_one_line(error)
    assert part in error


@pytest.mark.parametrize("form", [[], ["--json"]], ids=["text", "json"])
def test_an_empty_prompt_ends_with_2(call, directory, form):
    code, output, error = call("generate", directory, "", *form)
    assert (code, output) == (2, "")
    assert "the prompt is empty" in error


def test_bad_input_ends_with_3(call, directory, tmp_path):
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9")
    (tmp_path / "empty.txt").write_bytes(b"")
    (tmp_path / "bad.jsonl").write_bytes(b'{"text": "a"}\n{"txt": "b"}\n')
    (tmp_path / "model").mkdir()
    (tmp_path / "bad.yaml").write_text("a: [")
    for words, part in [
        (["generate", tmp_path / "none", "hello"], "none is no model"),
        (["generate", tmp_path / "model", "hello"], "config.json does not exist"),
        (["eval", directory, "--text", tmp_path / "latin.txt"], "byte 0xE9 at offset 3"),
        (["eval", directory, "--text", tmp_path / "empty.txt"], "empty.txt is empty"),
        (["eval", directory, "--text", tmp_path / "bad.jsonl"], "bad.jsonl line 2"),
        (["eval", directory, "--text", tmp_path / "none.txt"], "none.txt does not exist"),
        (["tokenizer", "train", "--data", tmp_path / "latin.txt", "--out", tmp_path / "o"], "byte 0xE9 at offset 3"),
        (["tokenizer", "show", tmp_path / "model", "text"], "tokenizer.json does not exist"),
        (["tokenizer", "show", tmp_path / "latin.txt", "text"], "latin.txt is no tokenizer"),
        (["generate", "--recipe", tmp_path / "bad.yaml"], "bad.yaml cannot be read as YAML"),
    ]:
        code, output, error = call(*words)
        assert (code, output) == (3, ""), words
        assert_one_line(error)
        assert part in error


def test_a_failed_run_ends_with_4(call, tmp_path):
    (tmp_path / "text.txt").write_text("some text " * 1000)
    for verb in (["tokenizer", "train"], ["pretrain"]):
        code, output, error = call(*verb, "--data", tmp_path / "text.txt", "--out", tmp_path / "text.txt" / "out")
        assert (code, output) == (4, "")
        assert_one_line(error)
        assert "out cannot be written: Not a directory" in error


def test_errors_and_exit_codes_of_a_process(tmp_path):
    result = shell("generate", tmp_path / "none", "hello")
    assert (result.returncode, result.stdout) == (3, b"")
    assert_one_line(result.stderr.decode())


@pytest.mark.parametrize("place", [0, 1, 3])
def test_debug_shows_where_an_error_comes_from(tmp_path, place):
    words = ["generate", tmp_path / "none", "hello"]
    words.insert(place, "--debug")
    result = shell(*words)
    assert result.returncode == 3
    error = result.stderr.decode()
    assert "Traceback (most recent call last)" in error
    assert "load.py" in error
    assert_one_line(error.splitlines(keepends=True)[-1])


def test_arguments_that_are_no_utf_8_are_bad_input(call, directory):
    """The shell hands them over with lone surrogates in place of their bytes."""
    result = shell("tokenizer", "show", directory, "a\udcff")
    assert (result.returncode, result.stdout) == (3, b"")
    assert_one_line(result.stderr.decode())
    assert b"lone surrogate U+DCFF at position 1" in result.stderr
    for words in (["generate", directory], ["generate", directory, "--json"]):
        code, output, error = call(*words, "a\udcff")
        assert (code, output) == (3, "")
        assert_one_line(error)
        assert "lone surrogate U+DCFF at position 1" in error


@pytest.mark.parametrize("buffered", [{"PYTHONUNBUFFERED": ""}, {"PYTHONUNBUFFERED": "1"}], ids=str)
def test_a_closed_pipe_is_no_error(buffered):
    read, write = os.pipe()
    os.close(read)
    result = subprocess.run(
        [sys.executable, "-m", "lamoid.cli", "--help"],
        stdout=write,
        stderr=subprocess.PIPE,
        env={**os.environ, **buffered},
    )
    os.close(write)
    assert (result.returncode, result.stderr) == (0, b"")


def test_a_tokenizer_is_trained_and_opens_in_transformers(call, tmp_path):
    text = "\n\n".join(SCRIPTS.values())
    (tmp_path / "text.txt").write_text(text * 20, encoding="utf-8")
    words = [
        "tokenizer",
        "train",
        "--data",
        tmp_path / "text.txt",
        "--out",
        tmp_path / "new" / "tok",
        "--vocab-size",
        350,
    ]
    code, output, _ = call(*words, "--json")
    assert code == 0
    assert json.loads(output) == {
        "out": str(tmp_path / "new" / "tok"),
        "kind": "bpe",
        "vocab_size": 350,
        "bytes": len((text * 20).encode()),
    }
    twin = transformers.AutoTokenizer.from_pretrained(tmp_path / "new" / "tok")
    assert twin(text)["input_ids"] == lamoid.load_tokenizer(tmp_path / "new" / "tok").encode(text)
    assert sorted(p.name for p in (tmp_path / "new" / "tok").iterdir()) == ["tokenizer.json", "tokenizer_config.json"]
    code, output, _ = call(*words)
    assert (code, output) == (0, f"{tmp_path / 'new' / 'tok'}: bpe, 350 ids\n")


def test_a_small_sample_of_one_file_is_still_a_sample(call, tmp_path):
    (tmp_path / "text.txt").write_text("low lower lowest " * 1000)
    words = ["tokenizer", "train", "--data", tmp_path / "text.txt", "--out", tmp_path / "tok", "--vocab-size", 266]
    code, output, _ = call(*words, "--sample-bytes", 100, "--json")
    assert code == 0
    assert json.loads(output)["vocab_size"] == 266


def test_a_character_tokenizer_and_split_digits(call, tmp_path):
    (tmp_path / "text.txt").write_text("123 123 123 你好 " * 100, encoding="utf-8")
    data = ["--data", tmp_path / "text.txt", "--json"]
    _, output, _ = call("tokenizer", "train", *data, "--out", tmp_path / "char", "--kind", "char")
    assert json.loads(output)["vocab_size"] == 262 + 6
    call("tokenizer", "train", *data, "--out", tmp_path / "digits", "--vocab-size", 280, "--split-digits")
    assert len(lamoid.load_tokenizer(tmp_path / "digits").encode("123", add_special_tokens=False)) == 3
    code, _, error = call("tokenizer", "train", *data, "--out", tmp_path / "small", "--vocab-size", 100)
    assert code == 2
    assert "vocab_size is 100; the bytes and the special tokens alone need 262" in error


@pytest.mark.parametrize("text", SCRIPTS.values(), ids=SCRIPTS.keys())
def test_show_ends_in_the_tokenizers_ids(call, directory, text):
    tokenizer = lamoid.load_tokenizer(directory)
    ids = tokenizer.encode(text, add_special_tokens=False)
    code, output, _ = call("tokenizer", "show", directory, text, "--json")
    shown = json.loads(output)
    assert (code, shown["ids"]) == (0, ids)
    assert [tokenizer.backend.token_to_id(token) for token in shown["tokens"]] == ids
    ends = [s for w in shown["words"] for s in (w["merges"][-1]["symbols"] if w["merges"] else w["symbols"])]
    assert ends == shown["tokens"]
    assert any(word["merges"] for word in shown["words"])
    code, output, _ = call("tokenizer", "show", directory, text)
    assert code == 0
    assert f"ids       {' '.join(map(str, ids))}\n" in output
    assert f"{len(text)} characters, {len(text.encode())} bytes, {len(ids)} tokens\n" in output


@pytest.mark.parametrize("text", SCRIPTS.values(), ids=SCRIPTS.keys())
def test_eval_says_what_score_says(call, directory, tmp_path, text):
    file = tmp_path / "văn bản 文.txt"
    file.write_text(text * 12, encoding="utf-8")
    code, output, _ = call("eval", directory, "--text", file, "--json", "--context", 40, "--stride", 30)
    facts = json.loads(output)
    model, tokenizer = lamoid.load(directory, dtype=torch.float32)
    expected = score(model, [tokenizer.encode(text * 12)], len((text * 12).encode()), context=40, stride=30)
    assert code == 0
    assert facts["loss"] == pytest.approx(expected.loss, rel=1e-6)
    assert facts["bits_per_byte"] == pytest.approx(expected.bits_per_byte, rel=1e-6)
    assert facts["perplexity"] == pytest.approx(expected.perplexity, rel=1e-5)
    assert (facts["tokens"], facts["bytes"], facts["context"]) == (expected.tokens, expected.n_bytes, 40)
    code, output, _ = call("eval", directory, "--text", file)
    assert code == 0
    assert f"{file.name}: {expected.tokens:,} tokens, {expected.n_bytes:,} bytes, context 128" in output


@pytest.mark.parametrize("text", SCRIPTS.values(), ids=SCRIPTS.keys())
def test_generate_says_what_the_library_says(call, directory, text):
    flags = ["--max-new-tokens", 20, "--seed", 3, "--temperature", 1.5, "--top-k", 50]
    code, output, error = call("generate", directory, text, "--json", *flags)
    facts = json.loads(output)
    assert (code, output.count("\n"), error) == (0, 1, "")
    model, tokenizer = lamoid.load(directory, dtype=torch.float32)
    from lamoid.inference.sampling import Sampling

    expected = lamoid.generate(
        model, tokenizer, text, sampling=Sampling(temperature=1.5, top_k=50), max_new_tokens=20, seed=3
    )
    assert (facts["prompt"], facts["text"], facts["ids"]) == (text, expected.text, expected.ids)
    assert facts["log_probabilities"] == pytest.approx(expected.log_probabilities, rel=1e-5)
    assert facts["prompt_tokens"] == len(tokenizer.encode(text))
    assert facts["finish_reason"] == expected.finish_reason
    code, output, _ = call("generate", directory, text, *flags)
    assert (code, output) == (0, text + expected.text + "\n")


@pytest.mark.parametrize("verb", ["load", "convert", "generate"])
def test_code_of_a_model_directory_is_named_once_and_never_run(directory, tmp_path, verb):
    """Fault F25: a directory that wants its own classes for the configuration, the model and the tokenizer."""
    model, trap = tmp_path / "model", tmp_path / "executed"
    shutil.copytree(directory, model)
    (model / "own.py").write_text(f"open({str(trap)!r}, 'w')\n")
    own = {
        "config.json": {
            "auto_map": {"AutoConfig": "own.C", "AutoModelForCausalLM": "own.M"},
            "trust_remote_code": True,
        },
        "tokenizer_config.json": {"auto_map": {"AutoTokenizer": ["own.T", None]}, "tokenizer_class": "T"},
    }
    for name, fields in own.items():
        raw = json.loads((model / name).read_text(encoding="utf-8"))
        (model / name).write_text(json.dumps(raw | fields), encoding="utf-8")
    words = {
        "load": ["-c", "import sys, lamoid; lamoid.load(sys.argv[1])", model],
        "convert": ["-m", "lamoid.cli", "convert", model, tmp_path / "out"],
        "generate": ["-m", "lamoid.cli", "generate", model, "Việt", "--max-new-tokens=2"],
    }
    done = subprocess.run(
        [sys.executable, *map(str, words[verb])], capture_output=True, text=True, check=True, timeout=60, cwd=model
    )
    notes = [
        f"note: {model}/{name}: {field} is ignored;" for name in own for field in own[name] if "class" not in field
    ]
    lines = [line for line in done.stderr.splitlines() if line.startswith("note: ")]
    assert sorted(line.partition(" no code")[0] for line in lines) == sorted(notes), done.stderr
    assert not trap.exists()
    if verb == "convert":
        assert "own." not in (tmp_path / "out/config.json").read_text(encoding="utf-8")


def test_generate_in_a_plain_locale_reads_standard_input(directory):
    text = "".join(SCRIPTS.values())[:60]
    environment = {**os.environ, "LC_ALL": "C"}
    words = ["generate", directory, "-", "--max-new-tokens", 5, "--temperature", 0]
    result = shell(*words, input=text.encode(), env=environment)
    assert (result.returncode, result.stderr) == (0, b"")
    assert result.stdout.decode().startswith(text)
    assert len(result.stdout) > len(text.encode()) + 1


def test_settings_come_from_the_environment_and_a_file(call, directory, tmp_path, monkeypatch):
    (tmp_path / "recipe.yaml").write_text(f"model: {directory}\nprompt: hello\nmax_new_tokens: 3\njson: true\n")
    code, output, _ = call("generate", "--recipe", tmp_path / "recipe.yaml")
    assert (code, len(json.loads(output)["ids"])) == (0, 3)
    monkeypatch.setenv("LAMOID_MAX_NEW_TOKENS", "4")
    assert len(json.loads(call("generate", "--recipe", tmp_path / "recipe.yaml")[1])["ids"]) == 4
    words = ["generate", "--recipe", tmp_path / "recipe.yaml", "--max-new-tokens", 5]
    assert len(json.loads(call(*words)[1])["ids"]) == 5


@pytest.mark.parametrize("kind", ["sentencepiece", "tiktoken"])
def test_native_files_open_in_their_own_libraries(call, tmp_path, kind):
    """The trained directory holds tokenizer.model, and the library that it is made for gives the same ids."""
    file = tmp_path / "text.txt"
    file.write_text("\n".join(SCRIPTS.values()) * 40 + "\nthe cat sat on the mat 2024\n" * 40, encoding="utf-8")
    code, _, error = call(
        *("tokenizer", "train", "--data", file, "--kind", kind, "--vocab-size", 560, "--out", tmp_path / kind)
    )
    assert code == 0, error
    tokenizer = lamoid.load_tokenizer(tmp_path / kind)
    assert tokenizer.vocab_size == 560
    native = tmp_path / kind / "tokenizer.model"
    if kind == "sentencepiece":
        import sentencepiece

        encode = sentencepiece.SentencePieceProcessor(model_file=str(native)).encode
    else:
        import tiktoken
        from tiktoken.load import load_tiktoken_bpe

        pattern = WORDS.format(digits=DIGITS_IN_THREES)
        ranks = load_tiktoken_bpe(str(native))
        encode = tiktoken.Encoding("trained", pat_str=pattern, mergeable_ranks=ranks, special_tokens={}).encode
    for text in [*SCRIPTS.values(), "the cat sat on 123456 mats\n\n  ok"]:
        assert tokenizer.encode(text, add_special_tokens=False) == encode(text)
        assert tokenizer.decode(tokenizer.encode(text)) == text
