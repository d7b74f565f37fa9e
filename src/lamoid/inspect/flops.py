"""How many parameters a model has and trains, and the operations of a forward and a backward pass, in closed form.

A multiplication and its addition are two operations, and only matrix products count, as everywhere in the field. What a
frozen matrix saves, and what a method adds, follows from which tensors need a gradient: the walk below goes through a model
as autograd does.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from lamoid.inspect.anatomy import Anatomy, Heads, Matrix, Stack, Sublayer

MethodName = Literal["full", "lora", "qlora", "houlsby"]
ALL_LINEAR = "all-linear"
HOULSBY_BEHIND = ("o_proj", "down_proj")


@dataclass(frozen=True)
class Method:
    """What is trained of a model: everything, LoRA's thin matrices of `rank` on `targets`, or adapters of width `bottleneck`
    and the norms."""

    kind: MethodName = "full"
    rank: int = 8
    targets: tuple[str, ...] = (ALL_LINEAR,)
    bottleneck: int = 64

    @property
    def trains_norms(self) -> bool:
        """Whether gains and biases of norms get gradients."""
        return self.kind in ("full", "houlsby")

    def adapts(self, path: str) -> bool:
        """Whether the layer at this path of the model gets a LoRA."""
        is_output = path == "lm_head"
        named = any(path == t or path.endswith(f".{t}") or (t == ALL_LINEAR and not is_output) for t in self.targets)
        return self.kind in ("lora", "qlora") and named

    def adapts_behind(self, path: str) -> bool:
        """Whether a Houlsby adapter stands behind the layer at this path."""
        return self.kind == "houlsby" and path.endswith(HOULSBY_BEHIND)


@dataclass(frozen=True)
class Work:
    """A micro-batch: rows of `tokens` each, of which `trained` positions altogether have a loss.

    Sources of an encoder-decoder have `source_tokens` a row.
    """

    rows: int
    tokens: int
    trained: int
    source_tokens: int = 0

    def tokens_of(self, side: str) -> int:
        """Tokens of all rows that pass a stack."""
        return self.rows * (self.source_tokens if side == "source" else self.tokens)


@dataclass(frozen=True)
class Parameters:
    """How many there are, how many are trained, and how many of the frozen ones are kept in 4 bits."""

    total: int
    trainable: int
    quantized: int = 0


def count_parameters(parts: Anatomy, method: Method = Method()) -> Parameters:
    """Parameters of the model with the method's own added; a tied output matrix counts once."""
    layers = list(_layers(parts))
    base = parts.table_parameters + sum(part.parameters for _, part in layers)
    norms = parts.n_norms * parts.norm_parameters
    head = sum(matrix.parameters for matrix, _ in parts.head) + parts.head_norms * 2 * parts.d_model
    head -= parts.d_model * parts.vocab_size if parts.ties else 0
    total = base + norms + head
    if method.kind == "full":
        return Parameters(total, total)
    added = sum(_added(method, prefix, matrix) for prefix, part in layers for matrix in part.matrices)
    added += sum(_lora(method, matrix) for matrix, _ in parts.head if _is_output(matrix) and method.adapts(matrix.path))
    own_head = 0 if any(_is_output(matrix) for matrix, _ in parts.head) else head
    trainable = added + own_head + (norms if method.trains_norms else 0)
    quantized = sum(m.n_in * m.n_out for _, part in layers for m in part.matrices) if method.kind == "qlora" else 0
    return Parameters(total + added, trainable, quantized)


def _layers(parts: Anatomy) -> Iterator[tuple[str, Sublayer]]:
    """Every sublayer of the model, with the path of its block."""
    for stack in parts.stacks:
        for layer in range(stack.n_layers):
            for part in stack.sublayers:
                yield f"{stack.path}.{layer}.", part


def _is_output(matrix: Matrix) -> bool:
    """Whether it is a decoder's own output layer; other heads are put on an encoder, and adapted by no method."""
    return matrix.path == "lm_head"


def _lora(method: Method, matrix: Matrix) -> int:
    return method.rank * (matrix.n_in + matrix.n_out)


def _added(method: Method, prefix: str, matrix: Matrix) -> int:
    """Parameters that a method puts beside or behind a matrix."""
    path = prefix + matrix.path
    if method.adapts(path):
        return _lora(method, matrix)
    if method.adapts_behind(path):
        return 2 * matrix.n_out * method.bottleneck + method.bottleneck + matrix.n_out
    return 0


def count_pairs(n_queries: int, n_keys: int, *, causal: bool) -> int:
    """(query, key) pairs of which a weight is needed: all, or those that are not behind their query; the last query stands
    at the last key."""
    if not causal:
        return n_queries * n_keys
    before = n_keys - n_queries
    return n_queries * before + n_queries * (n_queries + 1) // 2


def forward_flops(parts: Anatomy, work: Work, *, whole_square: bool = False) -> int:
    """Operations of a forward pass, logits at trained positions alone.

    2 · in · out for each token and matrix, and 4 · E for each pair and head (scores, and the sum of values). Causal attention
    needs half of the square; `whole_square` counts what computes all of it.
    """
    blocks = sum(stack.n_layers * _block_flops(stack, work, whole_square) for stack in parts.stacks)
    return blocks + sum(2 * _at(place, work) * m.n_in * m.n_out for m, place in parts.head)


def _block_flops(stack: Stack, work: Work, whole_square: bool) -> int:
    flops = 0
    for part in stack.sublayers:
        flops += sum(2 * _tokens(part, m, stack, work) * m.n_in * m.n_out for m in part.matrices)
        flops += _attention_flops(part.heads, stack, work, whole_square)
    return flops


def _tokens(part: Sublayer, matrix: Matrix, stack: Stack, work: Work) -> int:
    """Tokens that a matrix reads: the memory's for keys and values of cross-attention."""
    reads_memory = part.heads is not None and part.heads.is_cross and matrix in part.first[1:]
    return work.tokens_of("source" if reads_memory else stack.side)


def _attention_flops(heads: Heads | None, stack: Stack, work: Work, whole_square: bool) -> int:
    """Two products of every pair in every head; Shaw's vectors meet each query, and each sum of weights, once more."""
    if heads is None:
        return 0
    n_queries = work.source_tokens if stack.side == "source" else work.tokens
    n_keys = work.source_tokens if heads.is_cross else n_queries
    pairs = count_pairs(n_queries, n_keys, causal=heads.causal and not whole_square)
    return 4 * work.rows * heads.n_heads * heads.head_dim * (pairs + n_queries * heads.shaw_rows)


def _at(place: str, work: Work) -> int:
    return {"trained": work.trained, "rows": work.rows, "tokens": work.tokens_of("target")}[place]


@dataclass(frozen=True)
class Use:
    """A matrix at its path in the model: tokens that it reads, and whether its input and its output need a gradient."""

    matrix: Matrix
    path: str
    tokens: int
    x_needs: bool
    y_needs: bool


def training_flops(
    parts: Anatomy,
    work: Work,
    method: Method = Method(),
    *,
    checkpointing: bool = False,
    whole_square: bool = False,
    recomputed: bool = False,
) -> int:
    """Operations of a forward and a backward pass.

    Backward, a matrix W of y = x Wᵀ costs as much as forward for dx = dy W, if anything before it is trained, and as much again
    for dW = dyᵀ x, if it is trained itself. Attention has four products for its forward's two, five where a kernel makes its
    scores again (`recomputed`). `checkpointing` makes each block's forward again, but for its last product, of whose output
    nothing is needed.
    """
    flops = forward_flops(parts, work, whole_square=whole_square)
    flows = flows_at_first(parts, method)
    for stack in parts.stacks:
        for layer in range(stack.n_layers):
            added = 0
            for part in stack.sublayers:
                uses = uses_of(parts, part, stack, work, method, f"{stack.path}.{layer}.", flows)
                added += sum(_added_flops(method, use) for use in uses)
                flops += sum(_backward_flops(method, use) for use in uses)
                square = _attention_flops(part.heads, stack, work, whole_square)
                flops += square * _attention_products([use.y_needs for use in uses[:-1]], recomputed=recomputed) // 2
                flows[stack.side] = flows[stack.side] or uses[-1].y_needs
            flops += added
            if checkpointing and flows[stack.side]:
                flops += added + _block_flops(stack, work, whole_square) - _last_product(method, uses[-1])
    return flops + _head_backward(parts, work, method, needs=flows["target"] or method.trains_norms)


def flows_at_first(parts: Anatomy, method: Method) -> dict[str, bool]:
    """Whether the embeddings of either side need a gradient, so that the first block's input does."""
    begins = method.kind == "full" or (parts.embedding_norm and method.trains_norms)
    return {"source": begins, "target": begins}


def uses_of(
    parts: Anatomy, part: Sublayer, stack: Stack, work: Work, method: Method, prefix: str, flows: dict[str, bool]
) -> list[Use]:
    """The matrices of a sublayer in order; each but the last reads the stream behind its norm, or the memory."""
    stream = flows[stack.side] or (parts.norm_place == "pre" and method.trains_norms)
    uses: list[Use] = []
    for matrix in part.matrices:
        path, tokens = prefix + matrix.path, _tokens(part, matrix, stack, work)
        reads_memory = part.heads is not None and part.heads.is_cross and matrix in part.first[1:]
        x_needs = flows["source"] if reads_memory else stream
        if matrix is part.last:
            x_needs = any(use.y_needs for use in uses)
        is_trained = method.kind == "full" or method.adapts(path) or method.adapts_behind(path)
        uses.append(Use(matrix, path, tokens, x_needs, x_needs or is_trained))
    return uses


def _added_flops(method: Method, use: Use) -> int:
    """Forward operations of what a method puts beside or behind a matrix."""
    if method.adapts(use.path):
        return 2 * use.tokens * _lora(method, use.matrix)
    return 4 * use.tokens * use.matrix.n_out * method.bottleneck if method.adapts_behind(use.path) else 0


def _backward_flops(method: Method, use: Use) -> int:
    """dx and dW of a matrix, and of what the method adds to it."""
    n, matrix = use.tokens, use.matrix
    flops = 2 * n * matrix.n_in * matrix.n_out * (use.x_needs + (method.kind == "full"))
    if method.adapts(use.path):
        flops += 2 * n * (_lora(method, matrix) + method.rank * (matrix.n_out + matrix.n_in * use.x_needs))
    if method.adapts_behind(use.path):
        flops += 2 * n * matrix.n_out * method.bottleneck * (3 + use.x_needs)
    return flops


def _attention_products(needs: list[bool], *, recomputed: bool) -> int:
    """Products of attention's backward pass for (dq, dk, dv): the weights' gradient is made for the first two."""
    if len(needs) < 3 or not any(needs):
        return 0
    q, k, v = needs
    return 5 if recomputed else (q or k) + q + k + v


def _last_product(method: Method, use: Use) -> int:
    """Operations of the last product in a block, which checkpointing need not make again."""
    n_in = use.matrix.n_in
    if method.adapts(use.path):
        n_in = method.rank
    if method.adapts_behind(use.path):
        n_in = method.bottleneck
    return 2 * use.tokens * n_in * use.matrix.n_out


def _head_backward(parts: Anatomy, work: Work, method: Method, *, needs: bool) -> int:
    """The head of an encoder is trained by every method, but for a matrix that is the frozen embedding."""
    flops = 0
    for i, (matrix, place) in enumerate(parts.head):
        is_base = _is_output(matrix) or (matrix.path == "decoder" and parts.ties)
        trained = method.kind == "full" or not is_base
        reads_hidden = i == 0 or matrix.path == "dense"
        flops += 2 * _at(place, work) * matrix.n_in * matrix.n_out * (trained + (needs if reads_hidden else 1))
    return flops
