import torch
from torch import nn

from lamoid.nn.norms import LayerNorm
from lamoid.nn.residual import add_sublayer


def test_both_places_are_those_of_torch() -> None:
    """A whole encoder layer of PyTorch's, with its attention and network put between our sums."""
    x = torch.randn(2, 5, 12)
    for norm_first, place in ((True, "pre"), (False, "post")):
        theirs = nn.TransformerEncoderLayer(12, 3, 20, dropout=0.0, batch_first=True, norm_first=norm_first)
        norms = []
        for norm in (theirs.norm1, theirs.norm2):
            nn.init.normal_(norm.weight)
            ours = LayerNorm(12)
            ours.load_state_dict(norm.state_dict())
            norms.append(ours)
        y = add_sublayer(x, lambda h: theirs.self_attn(h, h, h)[0], norms[0], nn.Identity(), place)  # noqa: B023
        y = add_sublayer(y, lambda h: theirs.linear2(theirs.linear1(h).relu()), norms[1], nn.Identity(), place)  # noqa: B023
        torch.testing.assert_close(y, theirs(x))


def test_dropout_falls_on_what_is_added() -> None:
    x, nothing = torch.randn(2, 3, 4), nn.Dropout(1.0)
    assert torch.equal(add_sublayer(x, lambda h: h + 1, nn.Identity(), nothing, "pre"), x)
