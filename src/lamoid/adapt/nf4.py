"""NF4: weights as the nearest of 16 values, 4 bits each, with a scale for every 64, itself in 8 bits.

A normal distribution puts as many weights on each value: they are its quantiles. Source: Dettmers et al. 2023, "QLoRA",
section 3 (NF4, double quantization) and appendix E (the values). Bytes and scales are those of `bitsandbytes`, whose
choices the paper leaves open: which value a weight between two gets, and the 8-bit type of the scales.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from lamoid.adapt.paths import ALL_LINEAR, FROZEN, find_layers, replace_layer
from lamoid.errors import UsageError
from lamoid.nn.linear import product

M = TypeVar("M", bound=nn.Module)
BLOCK, SCALE_BLOCK = 64, 256
VALUES = torch.tensor(
    [
        *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453),
        *(-0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0),
        *(0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224),
        *(0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0),
    ]
)
"""The quantiles of N(0, 1), scaled to [-1, 1], with an exact 0 (appendix E)."""
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class Nf4Config:
    """How a base is quantized: whether the scales are too, and the type that products are computed in."""

    double_quantization: bool = True
    compute_dtype: str = "float32"

    def __post_init__(self) -> None:
        if self.compute_dtype not in DTYPES:
            raise UsageError(f"compute_dtype is {self.compute_dtype!r:.80}; it must be one of {', '.join(DTYPES)}")


def quantize_base(model: M, config: Nf4Config, offsets: Mapping[str, float] | None = None) -> M:
    """Freeze a model and put its linear layers, all but the output layer, into NF4. Returns the model.

    Embeddings, norms, biases and the output layer stay as they are. Call it when the weights have their final dtype.
    `offsets` are those of a model that was quantized before (see `offsets_of`): with them it becomes the same to the bit
    on any machine, although the order in which a machine adds up the mean of the scales decides its last bit.
    """
    model.requires_grad_(False)
    for path, linear in find_layers(model, (nn.Linear,), [ALL_LINEAR]).items():
        assert isinstance(linear, nn.Linear)
        if offsets is not None and config.double_quantization and path not in offsets:
            raise UsageError(f"there is no offset among those given for {path}; give those of the same model, or none")
        replace_layer(model, path, Nf4Linear(linear, config, (offsets or {}).get(path)))
    return model


def offsets_of(model: nn.Module) -> dict[str, float]:
    """The mean scale of each layer in NF4, by its path in the base; empty without double quantization."""
    modules = model.named_modules()
    layers = {path.removesuffix(f".{FROZEN}"): layer for path, layer in modules if isinstance(layer, Nf4Linear)}
    return {path: float(layer.offset) for path, layer in layers.items() if layer.offset is not None}


class Nf4Linear(nn.Module):
    """y = x Wᵀ + b with W in NF4, made again for every product and dropped after it; x gets a gradient, W does not.

    W[i] = VALUES[code[i]] · scale[i // 64]                             over the rows of W, one behind the other
    scale[j] = SCALES[scale_code[j]] · scale_scale[j // 256] + offset   with double quantization
    """

    codes: Tensor
    scales: Tensor
    scale_scales: Tensor | None
    offset: Tensor | None

    def __init__(self, linear: nn.Linear, config: Nf4Config, offset: float | None = None) -> None:
        """Raises UsageError for weights that are not finite."""
        super().__init__()
        self.in_features, self.out_features, self.bias = linear.in_features, linear.out_features, linear.bias
        self.config, self.compute_dtype, self.weight_dtype = config, DTYPES[config.compute_dtype], linear.weight.dtype
        codes, scales = quantize(linear.weight.detach())
        if not bool(scales.isfinite().all()):
            raise UsageError("a weight is not finite and cannot be quantized; the model is damaged")
        mean = scale_scales = None
        if config.double_quantization:
            mean = scales.mean() if offset is None else torch.tensor(offset, device=scales.device)
            scales, scale_scales = quantize_scales(scales - mean)
        parts = {"codes": codes, "scales": scales, "scale_scales": scale_scales, "offset": mean}
        for name, part in parts.items():
            self.register_buffer(name, part)

    @property
    def weight(self) -> Float[Tensor, "out in"]:
        """W in the compute dtype, as a new tensor."""
        scales = self.scales
        if self.scale_scales is not None and self.offset is not None:
            scales = dequantize_scales(self.scales, self.scale_scales) + self.offset
        shape = (self.out_features, self.in_features)
        return dequantize(self.codes, scales, self.out_features * self.in_features).view(shape).to(self.compute_dtype)

    def forward(self, x: Float[Tensor, "*rest in"]) -> Float[Tensor, "*rest out"]:
        y = _Nf4Product.apply(x.reshape(-1, self.in_features).to(self.compute_dtype), self).to(x.dtype)
        if self.bias is not None:
            y = y + self.bias
        return y if x.dim() == 2 else y.view(*x.shape[:-1], self.out_features)

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}"

    def _apply(self, fn: Any, recurse: bool = True) -> "Nf4Linear":
        """`model.to(torch.bfloat16)` must not round the scales: they follow to another device alone."""
        parts = dict(self._buffers)
        super()._apply(fn, recurse)
        for name, part in parts.items():
            moved = self._buffers[name]
            self._buffers[name] = None if part is None or moved is None else part.to(moved.device)
        return self


class _Nf4Product(torch.autograd.Function):
    """x Wᵀ; nothing is kept for the backward pass, since W is made again there: dx = dy W."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: Nf4Linear) -> Tensor:
        ctx.layer = layer
        return product(x, layer.weight)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor, None]:
        return product(upstream[0], ctx.layer.weight.T), None


def quantize(weights: Tensor) -> tuple[UInt8[Tensor, " bytes"], Float[Tensor, " blocks"]]:
    """Codes and scales: scale = max |w| over 64 weights in a row, code = the nearest of VALUES to w / scale.

    Two codes a byte, the first in the upper half; an odd number is filled up with a code for 0. Between two values the
    lower one gets the midpoint. w / scale is w · (1 / scale) in blocks of 64 and a division in a last, shorter one.
    """
    w = weights.flatten().float()
    n_whole = len(w) // BLOCK * BLOCK
    blocks, rest = w[:n_whole].view(-1, BLOCK), w[n_whole:]
    scales = blocks.abs().amax(dim=1)
    scaled = [(blocks * (1 / scales.clamp(min=_TINY))[:, None]).flatten()]
    if len(rest):
        last = rest.abs().max().clamp(min=_TINY)
        scales = torch.cat([scales, last[None]])
        scaled.append(rest / last)
    if len(w) % 2:
        scaled.append(w.new_zeros(1))
    codes = torch.bucketize(torch.cat(scaled), _midpoints(VALUES.to(w.device)), out_int32=True).to(torch.uint8)
    return codes[::2] << 4 | codes[1::2], scales


def dequantize(
    codes: UInt8[Tensor, " bytes"], scales: Float[Tensor, " blocks"], n_weights: int
) -> Float[Tensor, " n_weights"]:
    """The weights in float32. One table of 256 pairs turns a byte into two of them at once."""
    pairs = _PAIRS.to(codes.device).index_select(0, codes.int())
    weights = pairs.view(torch.float32)
    missing = len(scales) * BLOCK - len(weights)
    if missing:
        weights = F.pad(weights, (0, missing))
    return weights.view(-1, BLOCK).mul_(scales[:, None]).flatten()[:n_weights]


def quantize_scales(
    scales: Float[Tensor, " blocks"],
) -> tuple[UInt8[Tensor, " blocks"], Float[Tensor, " scale_blocks"]]:
    """8-bit codes and one float32 for every 256: the nearest of SCALES to v = scale / max |scale|.

    v is first rounded to a grid of 65,536 steps, as bitsandbytes does on the CPU, where a table gives the nearest value.
    """
    blocks = F.pad(scales, (0, -len(scales) % SCALE_BLOCK)).view(-1, SCALE_BLOCK)
    largest = blocks.abs().amax(dim=1)
    v = (blocks * (1 / largest)[:, None]).nan_to_num(nan=-1.0).clamp(-1, 1)
    steps = ((v + 1) * 0.5 * 65535 + 0.5).int()
    grid = (steps.double() * (2 / 65535) - 1).float()
    codes = torch.bucketize(grid, _midpoints(SCALES.to(scales.device)), out_int32=True).to(torch.uint8)
    return codes.flatten()[: len(scales)], largest


def dequantize_scales(
    codes: UInt8[Tensor, " blocks"], largest: Float[Tensor, " scale_blocks"]
) -> Float[Tensor, " blocks"]:
    """What `quantize_scales` stands for, in float32."""
    return SCALES.to(codes.device)[codes.int()] * largest.repeat_interleave(SCALE_BLOCK)[: len(codes)]


def _midpoints(values: Tensor) -> Tensor:
    return (values[:-1] + values[1:]) / 2


def _dynamic_values() -> Float[Tensor, "256"]:
    """±10^(e−6) · the middles of 2^e equal parts of [0.1, 1], e from 0 to 6, with 0 and 1.

    Source: Dettmers 2016, "8-Bit Approximations for Parallelism in Deep Learning", the dynamic tree type.
    """
    values = [torch.tensor([0.0, 1.0])]
    for e in range(7):
        ends = torch.linspace(0.1, 1, 2**e + 1)
        middles = 10.0 ** (e - 6) * (ends[:-1] + ends[1:]) / 2
        values += [middles, -middles]
    return torch.cat(values).sort().values


SCALES = _dynamic_values()
"""The 8-bit type of the scales, ascending."""
_TINY = 1e-38  # keeps 1 / scale finite in a block of zeros
_BYTES = torch.arange(256)
_PAIRS = torch.stack([VALUES[_BYTES >> 4], VALUES[_BYTES & 15]], dim=1).view(torch.int64).flatten()  # two floats each
