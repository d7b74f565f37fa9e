"""The memory of training by kind, in closed form: weights, gradients, moments, activations, logits, data.

Activations are what autograd keeps for the backward pass, counted as the parts in `nn/` keep them: where one of those keeps
less, its line below changes, and `tests/inspect/test_memory.py` says so. The values of a tensor that two operations keep count
once, and a view keeps all that it looks at.
"""

import math
from dataclasses import astuple, dataclass

from lamoid.inspect.anatomy import Anatomy, Heads, Sublayer
from lamoid.inspect.flops import Method, Use, Work, count_parameters, flows_at_first, uses_of
from lamoid.nn.losses import CHUNK_TOKENS

LOGITS_AT_ONCE = 2
"""Tensors of that size at the peak: the logits, and what logsumexp makes of them."""
ALLOCATOR_SHARE = {"full": 0.4, "lora": 0.5, "qlora": 1.15, "houlsby": 0.7}
"""What glibc's allocator holds at the peak beside what lives, as a share of the activations: holes between tensors that come
and go, more with QLoRA, which makes its matrices anew for each product. From measured peaks (docs/plan.md)."""
ENCODER_SHARE = 1.0
"""The same of an encoder that is trained in full."""
NF4_BYTES = 1 / 2 + 1 / 64 + 4 / (64 * 256)
"""Of a weight: 4 bits, an 8-bit scale for every 64, and a scale of the scales for every 256 of those."""


@dataclass(frozen=True)
class Memory:
    """Bytes at the moment at which a training step holds the most, by kind.

    `process` is what the program and its libraries take before there is a model; `data` what of the data is in memory;
    `allocator` what is free between tensors and yet not given back. That one is an allowance, the others are counted.
    """

    weights: int
    gradients: int
    moments: int
    activations: int
    logits: int
    data: int
    process: int
    allocator: int

    @property
    def total(self) -> int:
        """All of it together: the peak."""
        return sum(astuple(self))


def training_memory(
    parts: Anatomy,
    work: Work,
    method: Method,
    *,
    bytes_per_value: int = 4,
    checkpointing: bool = False,
    packed: bool = False,
    accumulates: bool = False,
    data: int = 0,
    process: int = 0,
) -> Memory:
    """The peak of a step behind the first, when the moments are there.

    It is the larger of two moments: when the loss is made, all activations and a chunk of logits are there, and no gradient but
    the output matrix's, unless the micro-batches of a step `accumulate`; when the backward pass ends, all gradients are, and
    the embedding's once more, to be added.
    """
    n = count_parameters(parts, method)
    embedding = parts.vocab_size * parts.d_model if method.kind == "full" else 0
    added = n.trainable if method.kind in ("lora", "qlora", "houlsby") else 0
    weights = int((n.total - n.quantized - added) * bytes_per_value + added * 4 + n.quantized * NF4_BYTES)
    trained_bytes = bytes_per_value if method.kind == "full" else 4
    gradients, moments = n.trainable * trained_bytes, 2 * n.trainable * trained_bytes
    kept = activations(parts, work, method, checkpointing=checkpointing, packed=packed) * bytes_per_value
    logits = _logits(parts, work, method) * bytes_per_value
    is_encoder = method.kind == "full" and not any(heads.causal for heads in parts.heads())
    held = int((ENCODER_SHARE if is_encoder else ALLOCATOR_SHARE[method.kind]) * kept)
    at_loss = Memory(weights, gradients if accumulates else 0, moments, kept, logits, data, process, held)
    at_end = Memory(weights, gradients + embedding * bytes_per_value, moments, 0, 0, data, process, 0)
    return max(at_loss, at_end, key=lambda memory: memory.total)


def activations(
    parts: Anatomy, work: Work, method: Method, *, checkpointing: bool = False, packed: bool = False
) -> int:
    """Values that autograd keeps of a forward pass for the backward pass, ids and masks of booleans not counted.

    Checkpointing keeps each block's input, and at the peak the activations of one block. `packed`: documents of a row do not
    see each other; what grows with the square of their lengths counts as if one filled each row: nothing says how long they are.
    """
    flows, total = flows_at_first(parts, method), _at_the_ends(parts, work, method, packed)
    for stack in parts.stacks:
        largest = 0
        for layer in range(stack.n_layers):
            block = 0
            for part in stack.sublayers:
                uses = uses_of(parts, part, stack, work, method, f"{stack.path}.{layer}.", flows)
                kept = _Kept(parts, part, work, method, uses, flows[stack.side], packed, again=not checkpointing)
                block += kept.values(work.tokens_of(stack.side))
                flows[stack.side] = flows[stack.side] or uses[-1].y_needs
            largest = max(largest, block)
            total += work.tokens_of(stack.side) * parts.d_model if checkpointing else block
        total += largest if checkpointing else 0
    return total


@dataclass(frozen=True)
class _Kept:
    """A sublayer and what decides what it keeps: which of its matrices need what, whether its stream needs a gradient, and
    whether single tensors are made `again`, as is done where no checkpoint makes whole blocks again."""

    parts: Anatomy
    part: Sublayer
    work: Work
    method: Method
    uses: list[Use]
    stream_needs: bool
    packed: bool
    again: bool

    def values(self, n: int) -> int:
        """Values that it keeps for n tokens."""
        parts, method, uses, last = self.parts, self.method, self.uses, self.uses[-1]
        d_model, width = parts.d_model, last.matrix.n_in
        reads = [method.kind == "full" or method.adapts(use.path) for use in uses]  # whether its input is needed for dW
        kept = 0
        norm_needs = self.stream_needs or method.trains_norms
        if parts.norm_place == "post" or norm_needs:
            kept += n * (d_model + (2 if parts.norm == "layernorm" else 1))  # the norm's input, and numbers of each row
        if any(reads[:-1]) and not (parts.norms_again and self.again and norm_needs):
            kept += n * d_model  # its output, which the first matrices read
        kept += sum(use.tokens * method.rank for use in uses if method.adapts(use.path))
        needs = any(use.y_needs for use in uses[:-1])
        if self.part.heads is None:
            kept += n * width * self._between(needs, reads[-1])
        else:
            kept += self._attention(self.part.heads, n) if needs else 0
            # without these the kernel's output lies as it is read
            is_copied = parts.rope or self.packed or _keeps_scores(parts) or not needs
            kept += n * width if reads[-1] and is_copied else 0
        kept += n * d_model if parts.dropout else 0  # what is dropped
        if method.adapts_behind(last.path):
            kept += n * (d_model + 2 * method.bottleneck)  # the adapter's input, and both sides of its GELU
        return kept

    def _between(self, needs: bool, is_last_read: bool) -> int:
        """Tensors of the feed-forward's width: what the activation keeps where its input `needs` a gradient, and the last
        matrix's input, or where that is made again what it is made from. ReLU's output is both."""
        name = self.part.activation
        inside = {"relu": 1, "bilinear": 2, "swiglu": 2, "glu": 2, "reglu": 2, "geglu": 3}.get(name, 1)
        if not needs:
            return int(is_last_read)
        if not is_last_read:
            return inside
        if self.again:
            return inside + (name in ("glu", "reglu"))  # whose input nothing else keeps
        return inside + (name != "relu")

    def _attention(self, heads: Heads, n: int) -> int:
        """The fused kernel keeps q, k, v, its output and a number for each query and head. With dropout, or where the bias of
        the scores is learned, PyTorch takes another way, which keeps the scores: as weights, as what is dropped, and as what
        stays."""
        work = self.work
        n_memory = work.tokens_of("source") if heads.is_cross else n
        width, kv_width = heads.n_heads * heads.head_dim, heads.n_kv_heads * heads.head_dim
        # repeated for each query head, but in the backward pass where a gradient is needed
        k_width, v_width = (kv_width if self.again and use.y_needs else width for use in self.uses[1:3])
        if _keeps_scores(self.parts):
            n_keys = n_memory // work.rows
            squares = 3 if self.parts.attention_dropout else 1
            kept = n * width + n_memory * (width + v_width)  # scaled q and k, and v
            return kept + squares * n * heads.n_heads * n_keys
        kept = n * (2 * width + heads.n_heads) + n_memory * (k_width + v_width)
        if self.parts.score_bias:
            return kept + (work.rows if self.packed else 1) * heads.n_heads * work.tokens * work.tokens
        if not heads.causal:
            return kept + n_memory  # a mask of padding
        return kept


def _keeps_scores(parts: Anatomy) -> bool:
    return bool(parts.attention_dropout) or parts.score_bias == "learned"


def _at_the_ends(parts: Anatomy, work: Work, method: Method, packed: bool) -> int:
    """In front of the first block and behind the last: dropout, RoPE's table, norms, and the head's."""
    n, d_model = work.tokens_of("target"), parts.d_model
    norm = d_model + (2 if parts.norm == "layernorm" else 1)
    sides = sum(work.tokens_of(side) for side in {stack.side for stack in parts.stacks})
    kept = sides * d_model if parts.embedding_dropout else 0
    if parts.other_norms:
        kept += sides * norm
    if parts.rope:
        kept += (n if packed else work.tokens) * parts.heads()[0].head_dim
    if len(parts.stacks) > 1:
        kept += work.tokens_of("source") * d_model  # the memory, which every block of the decoder reads
    paths = {matrix.path for matrix, _ in parts.head}
    if "lm_head" in paths:  # both gradients are made beside the loss
        kept += work.trained * d_model + (parts.vocab_size * d_model if method.kind == "full" else 0)
    if "decoder" in paths:  # hidden, GELU's input and output, the norm's output; probabilities of all tokens
        kept += work.trained * (4 * d_model + 2 + parts.vocab_size)
    return kept


def _logits(parts: Anatomy, work: Work, method: Method) -> int:
    """Values of logits at the peak: of a chunk of the trained positions, or of all of them in an encoder's head."""
    last = parts.head[-1][0] if parts.head else None
    if last is None:
        return 0
    if last.path == "lm_head":
        chunk = CHUNK_TOKENS[method.kind == "full" or method.adapts(last.path)]
        return LOGITS_AT_ONCE * min(work.trained, chunk) * last.n_out
    return (LOGITS_AT_ONCE * work.trained if last.path == "decoder" else work.rows) * last.n_out


def gibibytes(n_bytes: float) -> str:
    """1.5 * 2**30 → `1.50 GiB`, small ones in MiB."""
    return f"{n_bytes / 2**30:.2f} GiB" if n_bytes >= 2**29 else f"{math.ceil(n_bytes / 2**20)} MiB"
