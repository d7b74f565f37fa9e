"""Heads of a group turned towards each other before their mean is taken; the model computes what it did.

Two things about a key/value head are left to chance by training, because nothing depends on them. Queries and keys may be
turned by the same angle in each pair of features that RoPE turns, and values by any orthogonal R that the output undoes:

    (q e^(jφ))* · (k e^(jφ)) = q* · k      with a pair of features as one complex number q = qᵢ + j qᵢ₊E/2
    (W_o Rᵀ) (R v) = W_o v

So heads that do alike may look unlike, and cancel in a mean. Here each head takes the angles and the R that bring it nearest to
its group's mean, and the mean is taken again, ROUNDS times: generalised Procrustes analysis (Gower 1975), with R = U Vᵀ
from the singular vectors of M Vᵀ (Schönemann 1966). Jin et al. 2024, "Align Attention Heads Before Merging Them", turn heads by
what they compute on sample texts; here the weights alone decide.
"""

import torch
from jaxtyping import Complex, Float
from torch import Tensor, nn

from lamoid.nn.attention import Attention

ROUNDS = 10
"""Fifty change the loss of a converted model (`benchmarks/gqa.py`) by less than 0.01 nats; one alone leaves up to 0.13."""


@torch.no_grad()
def align_heads(attention: Attention, n_groups: int) -> None:
    """Turn the heads of `n_groups` groups of neighbours in place, with the query heads that they serve."""
    e = attention.head_dim
    n_old = len(attention.k_proj.weight) // e
    shape = (n_groups, n_old // n_groups)
    q, k, v = (
        _rows(linear).unflatten(0, (*shape, -1, e)) for linear in (attention.q_proj, attention.k_proj, attention.v_proj)
    )
    turn = _angles(_as_pairs(k.squeeze(2)))[:, :, None, :, None]
    _write(attention.q_proj, _as_features(_as_pairs(q) * turn))
    _write(attention.k_proj, _as_features(_as_pairs(k) * turn))
    rotation = _rotations(v.squeeze(2))[:, :, None]
    _write(attention.v_proj, rotation @ v)
    out = attention.o_proj.weight
    heads = _precise(out).T.unflatten(0, (*shape, -1, e))
    out.copy_((rotation @ heads).flatten(0, 3).T)


def _angles(keys: Complex[Tensor, "N G half D"]) -> Complex[Tensor, "N G half"]:
    """e^(jφ) of each pair of each head: the angle between it and the group's mean, over all inputs."""
    mean = keys[:, :1]
    for _ in range(ROUNDS):
        between = (mean * keys.conj()).sum(-1).angle()
        turn = torch.polar(torch.ones_like(between), between)
        mean = (keys * turn[..., None]).mean(1, keepdim=True)
    return turn


def _rotations(values: Float[Tensor, "N G E D"]) -> Float[Tensor, "N G E E"]:
    """The orthogonal R of each head that brings R · values nearest to the group's mean."""
    mean = values[:, :1]
    for _ in range(ROUNDS):
        u, _, v = torch.linalg.svd(mean @ values.mT)
        rotation = u @ v
        mean = (rotation @ values).mean(1, keepdim=True)
    return rotation


def _rows(linear: nn.Linear) -> Float[Tensor, "out columns"]:
    """Weights, with the bias as a last column where there is one: what becomes of an input and a 1."""
    columns = [linear.weight] if linear.bias is None else [linear.weight, linear.bias[:, None]]
    return _precise(torch.cat(columns, dim=1))


def _precise(x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """In float32, or in float64 where it is."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _write(linear: nn.Linear, rows: Float[Tensor, "N G heads E columns"]) -> None:
    flat = rows.flatten(0, 3)
    linear.weight.copy_(flat[:, : linear.in_features])
    if linear.bias is not None:
        linear.bias.copy_(flat[:, -1])


def _as_pairs(rows: Float[Tensor, "*heads E D"]) -> Complex[Tensor, "*heads half D"]:
    """Feature i with feature i + E/2, as RoPE pairs them (`nn.positions.rotate`)."""
    return torch.complex(*rows.chunk(2, dim=-2))


def _as_features(pairs: Complex[Tensor, "*heads half D"]) -> Float[Tensor, "*heads E D"]:
    return torch.cat((pairs.real, pairs.imag), dim=-2)
