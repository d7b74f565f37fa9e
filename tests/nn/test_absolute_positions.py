import math

import pytest
import torch

from lamoid.errors import UsageError
from lamoid.nn.absolute_positions import LearnedPositions, SinusoidalPositions


@pytest.mark.parametrize("d_model", [2, 6, 64])
def test_sinusoidal_is_the_formula(d_model: int) -> None:
    table = SinusoidalPositions(d_model)(torch.arange(50)[None])[0]
    for position in (0, 1, 7, 49):
        for i in range(d_model // 2):
            angle = position / 10_000 ** (2 * i / d_model)
            assert table[position, 2 * i].item() == pytest.approx(math.sin(angle), abs=1e-5)
            assert table[position, 2 * i + 1].item() == pytest.approx(math.cos(angle), abs=1e-5)


def test_sinusoidal_is_that_of_transformers() -> None:
    """Marian's table has all sines first."""
    from transformers.models.marian.modeling_marian import MarianSinusoidalPositionalEmbedding

    theirs = MarianSinusoidalPositionalEmbedding(40, 12)
    expected = theirs.create_weight() if hasattr(theirs, "create_weight") else theirs.weight
    ours = SinusoidalPositions(12)(torch.arange(40)[None])[0]
    torch.testing.assert_close(torch.cat((ours[:, 0::2], ours[:, 1::2]), dim=1), expected, rtol=1e-5, atol=1e-6)


def test_an_odd_width_is_refused() -> None:
    with pytest.raises(UsageError, match="d_model is 7"):
        SinusoidalPositions(7)


def test_learned_positions_end() -> None:
    learned = LearnedPositions(5, 4)
    assert learned(torch.tensor([[4, 0]])).shape == (1, 2, 4)
    with pytest.raises(UsageError, match="reaches position 5; this model has learned 5"):
        learned(torch.tensor([[3, 5]]))
