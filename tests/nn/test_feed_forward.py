import pytest
import torch
import transformers
from torch import nn
from transformers.models.llama.modeling_llama import LlamaMLP

from lamoid.nn.feed_forward import SwiGLU


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
