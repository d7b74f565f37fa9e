import pytest
import torch
import transformers
from torch import nn

from lamoid.checkpoints.hf import config_to_hf
from lamoid.models.bert import PRESETS, Bert, BertConfig
from lamoid.models.heads import PooledEncoder, Pooler


@pytest.mark.parametrize(("name", "millions"), [("bert-base", 109.5), ("bert-large", 335.1), ("bert-small", 28.8)])
def test_presets_have_the_published_sizes(name: str, millions: float) -> None:
    with torch.device("meta"):
        ours = PooledEncoder(Bert(PRESETS[name]), Pooler(PRESETS[name].d_model))
        theirs = transformers.BertModel(transformers.BertConfig(**config_to_hf(PRESETS[name])))
    count = sum(p.numel() for p in ours.parameters())
    assert count == theirs.num_parameters() and round(count / 1e6, 1) == millions


def a_bert(**settings: object) -> Bert:
    return Bert(BertConfig(53, 30, 2, 5, 41, 32), **settings).initialise(0)  # type: ignore[arg-type]


def test_every_token_sees_both_sides() -> None:
    model, ids = a_bert().eval(), torch.randint(53, (1, 7))
    with torch.no_grad():
        before = model(ids)
        for changed in (0, 3, 6):
            other = ids.clone()
            other[0, changed] = (other[0, changed] + 1) % 53
            assert (model(other) != before).any(dim=-1).all()


def test_what_stands_under_the_padding_does_not_matter() -> None:
    model, mask = a_bert().eval(), torch.tensor([[1, 1, 1, 1, 0, 0]])
    ids = torch.randint(53, (1, 6))
    other = ids.clone()
    other[0, 4:] = 7
    with torch.no_grad():
        torch.testing.assert_close(model(ids, mask)[:, :4], model(other, mask)[:, :4])
        torch.testing.assert_close(model(ids, mask)[:, :4], model(ids[:, :4]), rtol=1e-5, atol=1e-5)


def test_dropout_is_reproducible_and_gradient_checkpointing_changes_nothing() -> None:
    ids, gradients, outs = torch.randint(53, (2, 9)), [], []
    for recompute in (False, True, False):
        model = a_bert(gradient_checkpointing=recompute).train()
        torch.manual_seed(5)
        out = model(ids)
        out.square().sum().backward()
        outs.append(out)
        gradients.append([p.grad for p in model.parameters()])
    assert torch.equal(outs[0], outs[2])
    torch.testing.assert_close(gradients[0], gradients[1])
    torch.manual_seed(6)
    assert not torch.equal(model(ids), outs[0])
    assert [m.p for m in model.modules() if isinstance(m, nn.Dropout)] == [0.1] * 3
