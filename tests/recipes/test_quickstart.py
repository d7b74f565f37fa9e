"""`make quickstart` from its first line to its last, with few steps; what a newcomer is shown is there."""

import contextlib
import io
import re
import struct

import pytest
import torch
from tests.tokenizers.conftest import STRESS

import lamoid
from lamoid.cli import main
from lamoid.recipes import quickstart


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A quickstart of 20 steps: its directory, and what it said."""
    folder, out = tmp_path_factory.mktemp("quickstart"), io.StringIO()
    torch.set_num_threads(1)
    with contextlib.chdir(folder), contextlib.redirect_stdout(out):
        assert quickstart.run(max_steps=20) == 0
    return folder / quickstart.OUT, out.getvalue()


def test_it_ends_with_all_that_was_promised(finished):
    directory, out = finished
    assert "loss (nats per token)" in out and "held out" in out
    picture = (directory / "loss.png").read_bytes()
    assert struct.unpack(">II", picture[16:24]) == (1152, 648)
    figures = {
        name: float(value) for name, value in re.findall(r"^  (this model|byte 5-gram|xz -9) +([\d.]+)", out, re.M)
    }
    assert set(figures) == {"this model", "byte 5-gram", "xz -9"}
    assert figures["byte 5-gram"] == pytest.approx(2.0, abs=0.2)  # pydoc's text changes a little with Python
    assert figures["this model"] < 8
    for prompt in quickstart.PROMPTS:
        assert f"{prompt!r} -> " in out
    assert out.count(".venv/bin/lamoid") == 3


def test_its_model_goes_to_gguf_and_back_unchanged(finished, tmp_path):
    """Every logit to the bit, in the GGUF file and in the directory made of it, and every id."""
    directory, _ = finished
    assert main(["convert", str(directory), str(tmp_path / "model.gguf"), "--dtype", "f32"]) == 0
    assert main(["convert", str(tmp_path / "model.gguf"), str(tmp_path / "back")]) == 0
    model, tokenizer = lamoid.load(directory)
    ids = torch.tensor([tokenizer.encode("".join(STRESS.values()))[: model.config.max_seq_len]])
    for path in (tmp_path / "model.gguf", tmp_path / "back"):
        again, same_tokenizer = lamoid.load(path)
        assert again.config == model.config
        with torch.inference_mode():
            assert torch.equal(again(ids), model(ids))
        assert same_tokenizer.specials == tokenizer.specials
        for text in STRESS.values():
            got = same_tokenizer.encode(text)
            assert got == tokenizer.encode(text)
            assert same_tokenizer.decode(got) == tokenizer.decode(got) == text
