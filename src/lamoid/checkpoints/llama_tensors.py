"""The tensors that a file of a Llama has to hold, compared with those that it holds. No torch."""

from collections.abc import Callable
from pathlib import Path

from lamoid.errors import CheckpointError
from lamoid.models.llama_config import LlamaConfig, parameter_shapes


def check_tensors(
    path: Path, config: LlamaConfig, rename: Callable[[str], str], found: dict[str, tuple[int, ...]]
) -> None:
    """Raise CheckpointError listing every tensor of a file that is missing, superfluous or of the wrong shape."""
    wanted = {rename(name): shape for name, shape in parameter_shapes(config).items()}
    problems = [f"{name} is missing" for name in wanted if name not in found]
    problems += [f"{name} is superfluous" for name in found if name not in wanted]
    problems += [
        f"{name} is {found[name]}, not {shape}" for name, shape in wanted.items() if found.get(name, shape) != shape
    ]
    if problems:
        raise CheckpointError(f"{path} does not fit its configuration: {listed(problems)}")


def listed(problems: list[str]) -> str:
    """Problems for a message: twenty of them, none longer than 200 characters, and how many more there are."""
    more = [f"and {len(problems) - 20} more"] if len(problems) > 20 else []
    return "; ".join([*(f"{problem:.200}" for problem in problems[:20]), *more])
