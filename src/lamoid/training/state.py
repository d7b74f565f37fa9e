"""What a run needs to go on exactly where it was, besides the model: as tensors and plain values.

Whoever calls writes them to disk; no file format is known here.
"""

from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor, nn

from lamoid.errors import CheckpointError
from lamoid.training.loop import Progress


def capture(
    model: nn.Module, optimizer: torch.optim.Optimizer, progress: Progress
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors (optimizer state by parameter name, random state) and plain values (progress, threads)."""
    tensors: dict[str, Tensor] = {"random_state": torch.get_rng_state()}
    for name, parameter in model.named_parameters():
        for key, value in optimizer.state.get(parameter, {}).items():
            tensors[f"{key}/{name}"] = value.detach().contiguous()
    return tensors, {"progress": asdict(progress), "threads": torch.get_num_threads()}


def restore(
    model: nn.Module, optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor], plain: dict[str, Any]
) -> Progress:
    """Put captured state back into a model's optimizer and the random generator; returns the progress.

    Raises CheckpointError where the state belongs to another model.
    """
    torch.set_rng_state(tensors.pop("random_state"))
    parameters = dict(model.named_parameters())
    for full_name, value in tensors.items():
        key, _, name = full_name.partition("/")
        parameter = parameters.get(name)
        if parameter is None or (value.dim() and value.shape != parameter.shape):
            raise CheckpointError(f"optimizer state {full_name} fits no parameter of this model; start a new run")
        optimizer.state[parameter][key] = value
    progress = Progress(**plain["progress"])
    progress.position = tuple(progress.position)
    return progress
