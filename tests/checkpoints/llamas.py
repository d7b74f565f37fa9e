"""Small Llamas of several shapes."""

import torch

from lamoid.models.llama import Llama, LlamaConfig
from lamoid.nn.rope_scaling import Llama3Scaling

TEMPLATE = "{% for m in messages %}<|start_header_id|>{{ m['role'] }}<|end_header_id|>{{ m['content'] }}{% endfor %}"

_SHAPE = dict(vocab_size=400, d_model=64, n_layers=2, n_heads=4, n_kv_heads=2, head_dim=16, d_ff=96, max_seq_len=128)
LLAMA3 = Llama3Scaling(32.0, 1.0, 4.0, 8192)
SHAPES = {
    "grouped": LlamaConfig(**_SHAPE),
    "one kv head, odd head size": LlamaConfig(**_SHAPE | dict(n_kv_heads=1, head_dim=24, norm_eps=1e-6)),
    "tied": LlamaConfig(**_SHAPE, tied_embeddings=True),
    "all heads, other base": LlamaConfig(**_SHAPE | dict(n_kv_heads=4, rope_base=500_000.0)),
}
SCALED = LlamaConfig(**_SHAPE, tied_embeddings=True, rope_base=500_000.0, rope_scaling=LLAMA3)


def random_llama(config: LlamaConfig) -> Llama:
    """Weights large enough that attention is not flat, norms and biases that are not all alike."""
    model = Llama(config).initialise(0)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.copy_(1 + 0.3 * torch.randn(parameter.shape, generator=generator))
            else:
                parameter.mul_(6)
    return model


@torch.no_grad()
def make_heads_alike(model: Llama, n_groups: int) -> None:
    """Every key/value head of a group becomes what the group's last one is."""
    for block in model.layers:
        for linear in (block.attention.k_proj, block.attention.v_proj):
            for parameter in linear.parameters():
                heads = parameter.unflatten(0, (n_groups, model.config.n_kv_heads // n_groups, -1))
                heads.copy_(heads[:, -1:].clone().expand_as(heads))
