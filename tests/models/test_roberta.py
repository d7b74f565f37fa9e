import pytest
import torch
import transformers

from lamoid.checkpoints.hf import config_to_hf
from lamoid.errors import UsageError
from lamoid.models.heads import HeadedEncoder, make_head
from lamoid.models.roberta import PRESETS, Roberta, RobertaConfig


@pytest.mark.parametrize(("name", "millions"), [("roberta-base", 125), ("roberta-large", 355), ("roberta-small", 39)])
def test_presets_have_the_published_sizes(name: str, millions: int) -> None:
    with torch.device("meta"):
        encoder = Roberta(PRESETS[name])
        ours = HeadedEncoder(encoder, make_head(encoder, "mlm"))
        theirs = transformers.RobertaForMaskedLM(transformers.RobertaConfig(**config_to_hf(PRESETS[name])))
        theirs.tie_weights()
    count = sum(p.numel() for p in ours.parameters())
    assert count == theirs.num_parameters() and round(count / 1e6) == millions


@torch.no_grad()
def test_a_row_with_padding_in_front_is_the_row_alone() -> None:
    model = Roberta(RobertaConfig(53, 30, 2, 5, 41, 32)).initialise(0).eval()
    ids = torch.randint(2, 53, (1, 7))
    padded = torch.cat((torch.full((1, 4), 1), ids), dim=1)
    mask = (padded != 1).long()
    torch.testing.assert_close(model(padded, mask)[:, 4:], model(ids), rtol=1e-5, atol=1e-5)


def test_as_many_tokens_as_it_says_and_no_more() -> None:
    model = Roberta(RobertaConfig(53, 30, 1, 5, 41, 8))
    assert model(torch.full((1, 8), 5)).shape == (1, 8, 30)
    with pytest.raises(UsageError, match="reaches position 10"):
        model(torch.full((1, 9), 5))
