"""LoRA beside its formula and beside peft: where it stands, what it trains, and the same losses from the same beginning."""

from dataclasses import replace
from pathlib import Path
from pydoc_data.topics import topics

import pytest
import torch
import torch.nn.functional as F
from tests.adapt.peft_twin import losses, peft_model, save
from tests.checkpoints.llamas import SHAPES, random_llama
from torch import Tensor, nn

from lamoid.adapt.lora import LoraConfig, LoraLinear, add_lora, merged_weight
from lamoid.adapt.nf4 import Nf4Config, Nf4Linear, quantize_base
from lamoid.checkpoints.hf import read_model, write_model
from lamoid.checkpoints.peft import attach, read_adapter
from lamoid.data.packed import Batch
from lamoid.errors import UsageError
from lamoid.models.llama import Llama
from lamoid.nn.losses import IGNORED
from lamoid.tokenizers.load import load_tokenizer
from lamoid.training.objectives import next_token

_SIZES = dict(head_dim=26, d_ff=100, vocab_size=97)  # rows that no block of NF4 divides
ODD = replace(SHAPES["one kv head, odd head size"], attention_bias=True, feed_forward_bias=True, **_SIZES)
NAMES = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def some_ids(*shape: int) -> Tensor:
    return torch.randint(0, 97, shape, generator=torch.Generator().manual_seed(0))


def with_lora(config: LoraConfig, *, drawn: bool = True) -> Llama:
    model = add_lora(random_llama(ODD), config)
    if drawn:
        with torch.no_grad():
            for layer in lora_layers(model).values():
                layer.lora_B.normal_(std=0.1)
    return model.eval()


def lora_layers(model: nn.Module) -> dict[str, LoraLinear]:
    return {path: layer for path, layer in model.named_modules() if isinstance(layer, LoraLinear)}


@pytest.mark.parametrize("in_nf4", [False, True])
@pytest.mark.parametrize("shape", [(3, 700, 257), (1, 257), (257,), (0, 257), (2, 0, 257)])
def test_every_size_is_the_formula_with_gradients(shape: tuple[int, ...], in_nf4: bool) -> None:
    """The first is large enough for products in place; an encoder's batch may have no masked token at all."""
    plain, x = nn.Linear(257, 515).requires_grad_(False), torch.randn(*shape, requires_grad=True)
    base = Nf4Linear(plain, Nf4Config()) if in_nf4 else plain
    layer = LoraLinear(base, LoraConfig(rank=5, alpha=7.5), torch.Generator().manual_seed(0))
    nn.init.normal_(layer.lora_B)
    expected = F.linear(x, base.weight, plain.bias) + 1.5 * (x @ layer.lora_A.T @ layer.lora_B.T)
    found, inputs = layer(x), [x, layer.lora_A, layer.lora_B]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-3)
    upstream = torch.randn_like(expected)
    ours, theirs = (torch.autograd.grad(y, inputs, upstream) for y in (found, expected))
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(
            one, other, rtol=1e-4, atol=1e-5 * float(other.abs().max() if other.numel() else 0) + 1e-4
        )


@pytest.mark.parametrize("in_nf4", [False, True])
@pytest.mark.parametrize("when", ["forward", "full_backward_pre", "full_backward"])
def test_a_hook_on_the_frozen_layer_changes_nothing_and_sees_what_it_gave(when: str, in_nf4: bool) -> None:
    """So large that without a hook the sum is made in the memory of the frozen layer's output."""
    plain, x = nn.Linear(257, 515).requires_grad_(False), torch.randn(700, 257, requires_grad=True)
    layer = LoraLinear(Nf4Linear(plain, Nf4Config()) if in_nf4 else plain, LoraConfig(), torch.Generator())
    nn.init.normal_(layer.lora_B)
    inputs, upstream = [x, layer.lora_A, layer.lora_B], torch.randn(700, 515)
    expected = torch.autograd.grad(layer(x), inputs, upstream)
    seen: list[Tensor] = []
    getattr(layer.linear, f"register_{when}_hook")(
        lambda *given: seen.append(given[-1] if isinstance(given[-1], Tensor) else given[-1][0])
    )
    found = torch.autograd.grad(layer(x), inputs, upstream)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=0)
    assert len(seen) == 1
    assert torch.equal(seen[0], layer.linear(x) if when == "forward" else upstream)


@torch.no_grad()
def test_a_new_lora_changes_nothing() -> None:
    ids, before = some_ids(2, 9), random_llama(ODD)
    model = with_lora(LoraConfig(rank=3), drawn=False)
    assert torch.equal(model(ids), before(ids))
    assert len(lora_layers(model)) == 14 and isinstance(model.lm_head, nn.Linear)


@pytest.mark.parametrize("rslora", [False, True])
def test_the_formula(rslora: bool) -> None:
    linear, x = nn.Linear(7, 5), torch.randn(2, 3, 7)
    layer = LoraLinear(linear, LoraConfig(rank=3, alpha=6.0, rslora=rslora), torch.Generator())
    nn.init.normal_(layer.lora_B)
    scale = 6 / 3**0.5 if rslora else 6 / 3
    expected = linear(x) + scale * (x @ layer.lora_A.T @ layer.lora_B.T)
    torch.testing.assert_close(layer(x), expected)
    torch.testing.assert_close(x @ merged_weight(layer).T + linear.bias, expected)
    assert layer.bias is linear.bias and torch.equal(layer.weight, merged_weight(layer))


def test_a_begins_gaussian_with_the_mean_square_of_x_and_follows_the_seed() -> None:
    def drawn(seed: int) -> Tensor:
        return LoraLinear(nn.Linear(1000, 2), LoraConfig(rank=64, seed=seed), generator(seed)).lora_A.detach()

    def generator(seed: int) -> torch.Generator:
        return torch.Generator().manual_seed(seed)

    model = random_llama(ODD)
    state = torch.get_rng_state()
    add_lora(model, LoraConfig(seed=1))
    assert torch.equal(torch.get_rng_state(), state)  # what else a run draws does not depend on the method
    a = drawn(0)
    assert a.square().mean().item() == pytest.approx(1 / 1000, rel=0.05) and abs(a.mean()) < 1e-3
    assert (a**4).mean().item() == pytest.approx(3 / 1000**2, rel=0.1)  # and no uniform draw
    for again, same in ((1, True), (2, False)):
        other = with_lora(LoraConfig(seed=again), drawn=False)
        pairs = zip(lora_layers(model).values(), lora_layers(other).values(), strict=True)
        assert all(torch.equal(ours.lora_A, theirs.lora_A) == same for ours, theirs in pairs)


@pytest.mark.parametrize(
    ("targets", "expected"),
    [
        (
            ("all-linear",),
            [f"layers.{i}.{p}" for i in range(2) for p in ("attention.q_proj", "feed_forward.down_proj")],
        ),
        (("q_proj", "lm_head"), ["layers.0.attention.q_proj", "layers.1.attention.q_proj", "lm_head"]),
        (("layers.1.feed_forward.up_proj", "attention.v_proj"), ["layers.1.feed_forward.up_proj"]),
        (("all-linear", "lm_head"), ["lm_head", "layers.1.attention.k_proj"]),
    ],
)
def test_targets(targets: tuple[str, ...], expected: list[str]) -> None:
    found = lora_layers(with_lora(LoraConfig(targets=targets)))
    assert set(expected) <= set(found)
    n_expected = {"all-linear": 14, "q_proj": 3, "layers.1.feed_forward.up_proj": 3}[targets[0]]
    assert len(found) == n_expected + (targets == ("all-linear", "lm_head"))


@pytest.mark.parametrize("targets", [("query",), ("q_proj", "query"), ("proj",), ("embedding",), ("norm",), ()])
def test_a_target_that_matches_nothing_is_an_error_that_lists_what_there_is(targets: tuple[str, ...]) -> None:
    model = random_llama(ODD)
    with pytest.raises(
        UsageError, match="there are " + ", ".join(NAMES) + ", lm_head; give some of these, or all-linear"
    ):
        add_lora(model, LoraConfig(targets=targets))
    assert not lora_layers(model)


def test_a_model_is_adapted_once() -> None:
    with pytest.raises(UsageError, match="adapted already; merge it first"):
        add_lora(with_lora(LoraConfig(targets=("q_proj",))), LoraConfig(targets=("v_proj",)))
    with pytest.raises(UsageError, match="match no linear layer of this model; there are none"):
        add_lora(nn.Sequential(nn.Embedding(3, 3)), LoraConfig())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (dict(rank=0), "rank is 0; it must be a whole number from 1"),
        (dict(rank=True), "rank is True"),
        (dict(alpha=0.0), "alpha is 0.0; it must be finite and above 0"),
        (dict(alpha=float("nan")), "alpha is nan"),
        (dict(dropout=1.0), "dropout is 1.0; it must be from 0 to less than 1"),
        (dict(dropout=float("nan")), "dropout is nan"),
    ],
)
def test_settings_out_of_range(settings: dict, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        LoraConfig(**settings)


def test_a_step_changes_a_and_b_alone() -> None:
    model = with_lora(LoraConfig(rank=3)).train()
    before = {name: p.clone() for name, p in model.named_parameters()}
    losses(model, some_ids(1, 12))
    changed = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert changed == {f"{path}.{part}" for path in lora_layers(model) for part in ("lora_A", "lora_B")}
    assert all(p.requires_grad == (name in changed) for name, p in model.named_parameters())


def test_dropout_is_drawn_in_training_alone_and_again_from_the_same_state() -> None:
    model, ids = with_lora(LoraConfig(dropout=0.5)), some_ids(1, 12)
    without = with_lora(LoraConfig())
    without.load_state_dict(model.state_dict())
    torch.testing.assert_close(model(ids), without(ids))
    model.train()
    state = torch.get_rng_state()
    first, second = model(ids), model(ids)
    torch.set_rng_state(state)
    assert torch.equal(model(ids), first) and not torch.equal(first, second)


def test_lora_on_an_output_layer_is_trained_through_the_loss_in_chunks() -> None:
    """`next_token` makes its loss from the matrix W + s · B A."""
    model, ids = with_lora(LoraConfig(rank=3, targets=("lm_head", "down_proj"))).train(), some_ids(2, 12)
    labels = ids.roll(-1, dims=1)
    labels[:, -1] = IGNORED
    nn.functional.cross_entropy(model(ids).flatten(0, 1), labels.flatten(), reduction="sum").backward()
    expected = {name: p.grad for name, p in model.named_parameters() if p.requires_grad}
    model.zero_grad(set_to_none=True)
    next_token(model, Batch(ids, labels))[0].backward()
    assert "lm_head.lora_A" in expected
    for name, p in model.named_parameters():
        if p.requires_grad:
            torch.testing.assert_close(p.grad, expected[name], rtol=1e-4, atol=1e-5)
    dropped = with_lora(LoraConfig(dropout=0.1, targets=("lm_head",)))
    next_token(dropped, Batch(ids, labels))
    with pytest.raises(UsageError, match=r"dropout is 0\.1 on an output layer"):
        next_token(dropped.train(), Batch(ids, labels))


@pytest.mark.parametrize("nf4", [False, True])
def test_a_model_in_bfloat16_has_its_lora_in_float32(nf4: bool) -> None:
    model = random_llama(ODD).bfloat16()
    if nf4:
        quantize_base(model, Nf4Config(compute_dtype="bfloat16"))
    add_lora(model, LoraConfig(rank=3))
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}
    out = model(some_ids(1, 12))
    assert out.dtype == torch.bfloat16
    out.float().sum().backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)


CASES = {
    "rank 3, biases, one kv head": dict(r=3, lora_alpha=5, target_modules="all-linear"),
    "rsLoRA": dict(r=4, lora_alpha=8, use_rslora=True, target_modules=["q_proj", "v_proj", "down_proj"]),
    "dropout": dict(r=3, lora_dropout=0.2, target_modules="all-linear"),
    "a Gaussian A": dict(r=2, init_lora_weights="gaussian", target_modules=["o_proj", "up_proj"]),
    "the output layer": dict(r=3, target_modules=["lm_head", "k_proj"]),
}


@pytest.mark.parametrize("nf4", [False, True], ids=["LoRA", "QLoRA"])
@pytest.mark.parametrize("case", CASES)
def test_losses_are_those_of_peft_from_the_same_beginning(case: str, nf4: bool, tmp_path: Path) -> None:
    """On a small model with everything odd; QLoRA's base is bitsandbytes' own, in its own layers."""
    base = tmp_path / "base"
    base.mkdir()
    write_model(base, random_llama(ODD), None)
    theirs = peft_model(base, nf4=nf4, **CASES[case])
    saved = read_adapter(save(theirs, tmp_path / "adapter", base))
    model = read_model(base)
    if nf4:
        quantize_base(model, Nf4Config())
    model = attach(model, saved).train()
    rows = some_ids(24).repeat(20, 1)
    expected = losses(theirs, rows, rate=3e-3)
    assert losses(model, rows, rate=3e-3) == pytest.approx(expected, rel=1e-4)
    assert expected[-1] < 0.95 * expected[0]


@pytest.mark.parametrize("steps", [5, pytest.param(50, marks=pytest.mark.prove)])
@pytest.mark.parametrize("nf4", [False, True], ids=["LoRA", "QLoRA"])
def test_losses_on_smollm2_are_those_of_peft(nf4: bool, steps: int, smollm2: Path, tmp_path: Path) -> None:
    """On real text, QLoRA on bitsandbytes' 4-bit layers. 50 steps take minutes: they belong to the long proofs."""
    theirs = peft_model(smollm2, nf4=nf4, r=8, lora_alpha=16, target_modules="all-linear")
    saved = read_adapter(save(theirs, tmp_path / "adapter", smollm2))
    text = "".join(topics[name] for name in sorted(topics))[: 400 * steps]
    rows = torch.tensor(load_tokenizer(smollm2).encode(text)[: 48 * steps]).view(steps, 48)
    expected = losses(theirs, rows, rate=2e-4)
    del theirs
    model = read_model(smollm2)
    if nf4:
        quantize_base(model, Nf4Config())
    attach(model, saved).train()
    assert losses(model, rows, rate=2e-4) == pytest.approx(expected, rel=1e-4)
    assert losses(model, rows[:1])[0] < 0.98 * expected[0]
