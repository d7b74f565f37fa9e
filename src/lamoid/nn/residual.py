"""Where the norm stands beside the residual sum: Pre-LN and Post-LN."""

from collections.abc import Callable
from typing import Literal

from jaxtyping import Float
from torch import Tensor, nn

NormPlace = Literal["pre", "post"]


def add_sublayer(
    x: Float[Tensor, "B T D"],
    sublayer: Callable[[Tensor], Tensor],
    norm: nn.Module,
    dropout: nn.Module,
    place: NormPlace,
) -> Float[Tensor, "B T D"]:
    """pre: x + dropout(f(norm(x)));  post: norm(x + dropout(f(x))).

    Post-LN is the original (Vaswani et al. 2017, section 5.4); with Pre-LN the gradients are even across layers from
    the first step, and the stack needs a norm of its own at the end (Xiong et al. 2020, section 3).
    """
    if place == "pre":
        return x + dropout(sublayer(norm(x)))
    return norm(x + dropout(sublayer(x)))
