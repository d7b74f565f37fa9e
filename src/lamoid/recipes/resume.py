"""A checkpoint that a run can go on from exactly: a model directory with training/ inside."""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from lamoid.checkpoints.hf import read_model, write_model
from lamoid.checkpoints.store import verify
from lamoid.errors import UsageError
from lamoid.models.llama import Llama
from lamoid.tokenizers.tokenizer import Tokenizer
from lamoid.training.loop import Progress
from lamoid.training.state import capture, restore

FOLDER, PLAIN_FILE, TENSORS_FILE = "training", "state.json", "state.safetensors"


@dataclass
class Standing:
    """What a run knows besides its model: progress, the best held-out loss and since how many evaluations, and whether
    the evaluation that is due at this step was made."""

    progress: Progress
    best: float | None = None
    evaluations_since_best: int = 0
    evaluated: bool = True


def write_checkpoint(
    directory: Path,
    model: Llama,
    tokenizer: Tokenizer,
    optimizer: torch.optim.Optimizer,
    standing: Standing,
    identity: dict[str, Any],
) -> None:
    """Write model, tokenizer and training state into a folder that the caller makes final."""
    write_model(directory, model, tokenizer)
    (directory / FOLDER).mkdir()
    tensors, plain = capture(model, optimizer, standing.progress)
    save_file(tensors, directory / FOLDER / TENSORS_FILE)
    own = {key: value for key, value in asdict(standing).items() if key != "progress"}
    text = json.dumps(plain | {"standing": own, "identity": identity}, indent=2)
    (directory / FOLDER / PLAIN_FILE).write_text(text + "\n", encoding="utf-8")


def read_checkpoint(
    directory: Path,
    model: Llama,
    optimizer: torch.optim.Optimizer,
    identity: dict[str, Any],
    *,
    force: bool,
    notify: Callable[[str], object],
) -> Standing:
    """Put a checkpoint into a model and its optimizer. Raises UsageError naming the setting in which the run differs."""
    verify(directory)
    plain = json.loads((directory / FOLDER / PLAIN_FILE).read_text(encoding="utf-8"))
    for name, value in plain["identity"].items():
        if identity.get(name) != value and not force:
            raise UsageError(
                f"{directory} was trained with {name} {value}, this call has {identity.get(name)}; "
                f"choose another --out, or go on all the same with --force"
            )
    if plain["threads"] != torch.get_num_threads():
        notify(
            f"warning: the run used {plain['threads']} threads, now {torch.get_num_threads()}: "
            f"the last bits of its numbers may differ"
        )
    model.load_state_dict(read_model(directory).state_dict())
    progress = restore(model, optimizer, load_file(directory / FOLDER / TENSORS_FILE), plain)
    return Standing(progress, **plain["standing"])
