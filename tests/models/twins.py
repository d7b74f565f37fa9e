"""Random twins in transformers: every parameter drawn, gains around 1."""

from typing import Any

import torch
from torch import Tensor, nn

from lamoid.nn.attention import Attention, attend_explicitly


def scatter(model: nn.Module) -> Any:
    """Weights large enough that attention is far from uniform; norms and biases that are not all alike."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            is_gain = parameter.dim() == 1 and name.endswith("weight")
            parameter.normal_(mean=1.0 if is_gain else 0.0, std=0.3)
    return model.eval()


def train_explicitly(model: nn.Module) -> nn.Module:
    """In training mode, with every attention on the explicit path, which draws its dropout as transformers' eager one does."""
    for module in model.modules():
        if isinstance(module, Attention):
            module.attend = attend_explicitly
    return model.train()


def assert_equal_outputs(ours: Tensor, theirs: Tensor, tolerance: float = 1e-4) -> None:
    assert ours.shape == theirs.shape
    difference = ((ours - theirs).abs().max() / theirs.abs().max()).item()
    assert difference < tolerance, f"outputs differ by {difference:.2e} of the largest"


def padded_ids(n_vocab: int, side: str, pad_id: int, length: int = 13) -> tuple[Tensor, Tensor]:
    """Three rows of which two have padding on one side."""
    ids, mask = torch.randint(pad_id + 1, n_vocab, (3, length)), torch.ones(3, length, dtype=torch.int64)
    for row, n_padding in enumerate((0, 4, 9)):
        if n_padding:
            where = slice(0, n_padding) if side == "left" else slice(-n_padding, None)
            mask[row, where], ids[row, where] = 0, pad_id
    return ids, mask
