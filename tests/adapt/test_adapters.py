"""Houlsby adapters: identity at the start, where they stand, and what is trained."""

import pytest
import torch
from tests.adapt.peft_twin import losses
from tests.checkpoints.llamas import SHAPES, random_llama
from torch import Tensor, nn

from lamoid.adapt.adapters import AdaptedLinear, Adapter, AdapterConfig, add_adapters
from lamoid.errors import UsageError
from lamoid.models.llama import Llama

SHAPE = SHAPES["one kv head, odd head size"]


def some_ids(*shape: int) -> Tensor:
    return torch.randint(0, SHAPE.vocab_size, shape, generator=torch.Generator().manual_seed(0))


def adapted(config: AdapterConfig, *, drawn: bool = True) -> Llama:
    model = add_adapters(random_llama(SHAPE), config)
    if drawn:
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if ".adapter." in name:
                    parameter.normal_(std=0.2)
    return model


@torch.no_grad()
@pytest.mark.parametrize("bottleneck", [1, 7, 64])
def test_it_begins_as_the_identity(bottleneck: int) -> None:
    ids, before = some_ids(2, 9), random_llama(SHAPE)
    model = adapted(AdapterConfig(bottleneck), drawn=False)
    x = torch.randn(3, SHAPE.d_model)
    for layer in model.modules():
        if isinstance(layer, Adapter):
            assert (layer(x) - x).abs().max() <= 1e-6
            assert layer.down.weight.std().item() == pytest.approx(SHAPE.d_model**-0.5, rel=0.3)
    assert (model(ids) - before(ids)).abs().max() <= 1e-6


def test_two_adapters_a_block_each_before_its_residual_sum() -> None:
    """The model, written out with its blocks' adapters between the sublayers and the sums."""
    model, ids = adapted(AdapterConfig(5)), some_ids(1, 9)
    assert sum(isinstance(m, Adapter) for m in model.modules()) == 2 * SHAPE.n_layers
    rope, x = model.rope(torch.arange(9)[None]), model.embedding(ids)
    for block in model.layers:
        o_proj, down_proj = block.attention.o_proj, block.feed_forward.down_proj
        block.attention.o_proj, block.feed_forward.down_proj = o_proj.linear, down_proj.linear
        x = x + written_out(o_proj.adapter, block.attention(block.attention_norm(x), rope))
        x = x + written_out(down_proj.adapter, block.feed_forward(block.feed_forward_norm(x)))
        block.attention.o_proj, block.feed_forward.down_proj = o_proj, down_proj
    torch.testing.assert_close(model(ids), model.lm_head(model.norm(x)), rtol=1e-4, atol=1e-4)


def written_out(adapter: Adapter, x: Tensor) -> Tensor:
    hidden = nn.functional.gelu(x @ adapter.down.weight.T + adapter.down.bias)
    return x + hidden @ adapter.up.weight.T + adapter.up.bias


def test_a_step_changes_adapters_and_norms_alone() -> None:
    model = adapted(AdapterConfig(7)).train()
    before = {name: p.clone() for name, p in model.named_parameters()}
    losses(model, some_ids(1, 12), rate=1e-2)
    changed = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert changed == {name for name in before if ".adapter." in name or name.endswith("norm.weight")}
    assert len(changed) == 2 * SHAPE.n_layers * 5 + 1
    assert all(p.requires_grad == (name in changed) for name, p in model.named_parameters())


def test_it_learns_from_the_beginning() -> None:
    found = losses(adapted(AdapterConfig(8), drawn=False).train(), some_ids(24).repeat(20, 1), rate=3e-3)
    assert found[-1] < 0.9 * found[0]


def test_it_stands_behind_any_layer_of_any_model_by_its_name() -> None:
    """An encoder of other names, which nothing here knows."""

    class Layer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.intermediate, self.output = nn.Linear(6, 9), nn.Linear(9, 6)
            self.LayerNorm = nn.LayerNorm(6)

        def forward(self, x: Tensor) -> Tensor:
            return self.LayerNorm(x + self.output(self.intermediate(x).relu()))

    model, x = nn.Sequential(Layer(), Layer(), nn.Linear(6, 2)), torch.randn(4, 6)
    before = model(x)
    add_adapters(model, AdapterConfig(3, behind=("output",), norms=("LayerNorm",)))
    assert torch.equal(model(x), before)
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert trained == {
        *(f"{i}.LayerNorm.{part}" for i in range(2) for part in ("weight", "bias")),
        *(f"{i}.output.adapter.{m}.{part}" for i in range(2) for m in ("down", "up") for part in ("weight", "bias")),
    }


def test_the_seed_decides_the_beginning() -> None:
    first, same, other = (adapted(AdapterConfig(5, seed=seed), drawn=False).state_dict() for seed in (1, 1, 2))
    name = "layers.1.attention.o_proj.adapter.down.weight"
    assert torch.equal(first[name], same[name]) and not torch.equal(first[name], other[name])


def test_a_model_in_bfloat16_has_adapters_in_float32() -> None:
    model = add_adapters(random_llama(SHAPE).bfloat16(), AdapterConfig(5))
    assert {p.dtype for name, p in model.named_parameters() if ".adapter." in name} == {torch.float32}
    assert model(some_ids(1, 9)).dtype == torch.bfloat16


def test_what_is_wrong_is_said() -> None:
    with pytest.raises(UsageError, match="bottleneck is 0; it must be a whole number from 1"):
        AdapterConfig(0)
    with pytest.raises(UsageError, match=r"targets \['dense'\] match no linear layer of this model; there are q_proj"):
        add_adapters(random_llama(SHAPE), AdapterConfig(behind=("o_proj", "dense")))
    with pytest.raises(UsageError, match="adapted already"):
        add_adapters(adapted(AdapterConfig(3)), AdapterConfig(3))
    assert not any(isinstance(m, AdaptedLinear) for m in random_llama(SHAPE).modules())
