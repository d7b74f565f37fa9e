"""`make quickstart` from its first line to its last, with few steps; what a newcomer is shown is there."""

import re
import struct

import pytest
import torch

from lamoid.recipes import quickstart


def test_it_ends_with_all_that_was_promised(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    torch.set_num_threads(1)
    assert quickstart.run(max_steps=20) == 0
    out = capsys.readouterr().out
    assert "loss (nats per token)" in out and "held out" in out
    picture = (tmp_path / "runs/quickstart/loss.png").read_bytes()
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
