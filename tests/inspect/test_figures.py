"""The loss curve, in the terminal and as a picture."""

import struct
from pathlib import Path

import pytest

from lamoid.inspect.figures import loss_curve_png, loss_curve_text, smooth

TRAINING = [(step, 6.0 - 3.0 * step / 1000) for step in range(1, 1001)]
HELDOUT = [(step, 6.2 - 3.0 * step / 1000) for step in range(100, 1001, 100)]


def test_terminal_curve_falls_from_left_to_right():
    lines = loss_curve_text(TRAINING, HELDOUT).splitlines()
    assert "loss" in lines[0] and "\x1b" not in "".join(lines)
    assert any("training" in line for line in lines) and any("held out" in line for line in lines)
    rows = [line.partition("┤")[2] or line.partition("│")[2] for line in lines if "┤" in line or "│" in line]
    drawn = [next((i for i, c in enumerate(row) if "▀" <= c <= "▟"), None) for row in rows[3:-1]]
    columns = [c for c in drawn if c is not None]
    assert columns == sorted(columns) and columns[-1] > columns[0] + 20


def test_picture_is_a_png_of_a_laptops_size(tmp_path: Path):
    loss_curve_png(tmp_path / "loss.png", TRAINING, HELDOUT, "a title")
    raw = (tmp_path / "loss.png").read_bytes()
    assert raw.startswith(b"\x89PNG\r\n\x1a\n")
    assert struct.unpack(">II", raw[16:24]) == (1152, 648)


def test_smoothing_is_a_mean_over_equal_stretches():
    assert smooth([(0, 1), (1, 3), (2, 5), (3, 7)], 2) == [(0.5, 2.0), (2.5, 6.0)]
    assert smooth(TRAINING, 10)[0] == pytest.approx((50.5, 6.0 - 3.0 * 50.5 / 1000))
    assert smooth([], 5) == []
