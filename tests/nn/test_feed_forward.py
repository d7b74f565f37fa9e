import math

import pytest
import torch
import transformers
from torch import nn
from transformers.models.llama.modeling_llama import LlamaMLP

from lamoid.nn.feed_forward import ACTIVATIONS, GATES, FeedForward, GatedFeedForward, SwiGLU


def a_network(*, bias: bool) -> SwiGLU:
    network = SwiGLU(13, 29, bias=bias)
    for parameter in network.parameters():
        nn.init.normal_(parameter)
    return network


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("shape", [(13,), (5, 13), (2, 3, 13)])
def test_is_the_formula(bias: bool, shape: tuple[int, ...]) -> None:
    network, x = a_network(bias=bias).double(), torch.randn(shape, dtype=torch.float64)
    p = dict(network.named_parameters())
    w, v, w2 = (p[f"{name}_proj.weight"] for name in ("gate", "up", "down"))
    b, c, b2 = (p.get(f"{name}_proj.bias", torch.zeros(())) for name in ("gate", "up", "down"))
    gate = x @ w.T + b
    expected = (gate / (1 + torch.exp(-gate)) * (x @ v.T + c)) @ w2.T + b2
    torch.testing.assert_close(network(x), expected)


@pytest.mark.parametrize("bias", [False, True])
def test_equals_transformers(bias: bool) -> None:
    network = a_network(bias=bias)
    config = transformers.LlamaConfig(
        hidden_size=13, intermediate_size=29, mlp_bias=bias, num_attention_heads=1, head_dim=2
    )
    reference = LlamaMLP(config)
    reference.load_state_dict(network.state_dict())
    x = torch.randn(2, 3, 13)
    torch.testing.assert_close(network(x), reference(x), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(("bias", "n_parameters"), [(False, 3 * 13 * 29), (True, 3 * 13 * 29 + 29 + 29 + 13)])
def test_number_of_parameters(bias: bool, n_parameters: int) -> None:
    assert sum(p.numel() for p in SwiGLU(13, 29, bias=bias).parameters()) == n_parameters


def test_gradcheck():
    network = SwiGLU(3, 4).double()
    x = torch.randn(2, 2, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x, *_: network(x), (x, *network.parameters()))


def normal_cdf(z: torch.Tensor) -> torch.Tensor:
    return (1 + torch.erf(z / math.sqrt(2))) / 2


FORMULAS = {
    "relu": lambda z: z.clamp_min(0),
    "gelu": lambda z: z * normal_cdf(z),
    "gelu_tanh": lambda z: z / 2 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (z + 0.044715 * z**3))),
    "glu": lambda z: 1 / (1 + torch.exp(-z)),
    "bilinear": lambda z: z,
    "reglu": lambda z: z.clamp_min(0),
    "geglu": lambda z: z * normal_cdf(z),
    "swiglu": lambda z: z / (1 + torch.exp(-z)),
}


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("kind", FORMULAS)
def test_every_network_is_its_formula(kind: str, bias: bool) -> None:
    """Shazeer 2020, equations 1, 2, 5 and 6; gradients too, whose activations are partly made again."""
    assert set(FORMULAS) == ACTIVATIONS.keys() | GATES.keys()
    make = FeedForward if kind in ACTIVATIONS else GatedFeedForward
    network = make(13, 29, kind, bias=bias).double()
    for parameter in network.parameters():
        nn.init.normal_(parameter)
    x = torch.randn(2, 5, 13, dtype=torch.float64, requires_grad=True)
    if kind in ACTIVATIONS:
        expected = network.down_proj(FORMULAS[kind](network.up_proj(x)))
    else:
        expected = network.down_proj(FORMULAS[kind](network.gate_proj(x)) * network.up_proj(x))
    got, inputs = network(x), [x, *network.parameters()]
    torch.testing.assert_close(got, expected)
    upstream = torch.randn_like(got)
    gradients = (torch.autograd.grad(y, inputs, upstream) for y in (got, expected))
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_both_forms_of_swiglu_are_one() -> None:
    ours, gated = a_network(bias=True), GatedFeedForward(13, 29, "swiglu", bias=True)
    gated.load_state_dict(ours.state_dict())
    x = torch.randn(3, 13)
    torch.testing.assert_close(gated(x), ours(x))


def test_tanh_gelu_is_gpt_2s() -> None:
    z = torch.linspace(-5, 5, 101)
    torch.testing.assert_close(ACTIVATIONS["gelu_tanh"](z), transformers.activations.NewGELUActivation()(z))
