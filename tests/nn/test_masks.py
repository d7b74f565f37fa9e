import torch

from lamoid.nn.masks import padding_mask


def test_padding_is_seen_by_nobody_and_no_row_is_empty() -> None:
    mask = padding_mask(torch.tensor([[0, 1, 1], [1, 1, 0], [0, 0, 0]]))
    assert mask is not None
    assert mask[:, 0, 0].tolist() == [[False, True, True], [True, True, False], [True, True, True]]
    assert padding_mask(None) is None
