"""A checkpoint that a run can go on from exactly: a model directory with training/ inside."""

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from lamoid.checkpoints.hf import read_model, write_model
from lamoid.checkpoints.store import verify
from lamoid.errors import CheckpointError, UsageError
from lamoid.recipes.recipe import load
from lamoid.recipes.settings import TrainingSettings
from lamoid.tokenizers.tokenizer import Tokenizer
from lamoid.training.distributed import current, is_sharded, placed_like
from lamoid.training.loop import Progress
from lamoid.training.state import capture, restore

R = TypeVar("R", bound=TrainingSettings)
RECIPE_FILE = "recipe.yaml"
MAY_CHANGE = {
    *("out", "threads", "device", "resume", "force", "parallel", "rank_timeout_s"),
    *("data", "tokenizer", "template", "skip_bad"),  # these are compared by what they amount to
    *(
        "epochs",
        "old_text",
        "prompt",
        "eval_every",
        "sample_every",
        "patience",
        "keep",
        "tensorboard",
        "compare",
        "json",
    ),
}
"""Settings that may differ when a run goes on."""
FOLDER, PLAIN_FILE, TENSORS_FILE = "training", "state.json", "state.safetensors"


@dataclass(frozen=True)
class Form:
    """How a run's model lies on disk: `write` fills a folder, `read` gives back what was trained, by parameter name."""

    write: Callable[[Path], None]
    read: Callable[[Path], Mapping[str, Tensor]]


def whole_model(model: nn.Module, tokenizer: Tokenizer) -> Form:
    """A Hugging Face directory with all weights."""
    return Form(lambda folder: write_model(folder, model, tokenizer), lambda folder: read_model(folder).state_dict())


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
    form: Form,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    standing: Standing,
    identity: dict[str, Any],
) -> None:
    """Write model, tokenizer and training state into a folder that the caller makes final.

    Of several processes the first does it, into a folder of its choice, with what the others hold of the model; each
    writes its own shards of the optimizer's state.
    """
    world = current()
    directory = world.same(directory)
    with world.gathered(model):
        if world.leads:
            form.write(directory)
            (directory / FOLDER).mkdir(exist_ok=True)
    tensors, plain = capture(model, optimizer, standing.progress)
    if is_sharded(model):
        from lamoid.checkpoints.shards import write_shards

        write_shards(directory / FOLDER, tensors)
    elif world.leads:
        save_file(tensors, directory / FOLDER / TENSORS_FILE)
    if not world.leads:
        return
    own = {key: value for key, value in asdict(standing).items() if key != "progress"}
    text = json.dumps(plain | {"standing": own, "identity": identity}, indent=2)
    (directory / FOLDER / PLAIN_FILE).write_text(text + "\n", encoding="utf-8")


def read_checkpoint(
    directory: Path,
    form: Form,
    model: nn.Module,
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
    _load_trained(model, form.read(directory), directory)
    progress = restore(model, optimizer, _read_tensors(directory / FOLDER, model), plain)
    return Standing(progress, **plain["standing"])


def identity(s: TrainingSettings, data_key: str, tokenizer: Tokenizer) -> dict[str, Any]:
    """What must not differ when a run goes on: what the data and the tokenizer hold, and the settings but MAY_CHANGE."""
    settings = {name: value for name, value in asdict(s).items() if name not in MAY_CHANGE}
    return {"data": data_key, "tokenizer": tokenizer.fingerprint(), **settings}


def _read_tensors(folder: Path, model: nn.Module) -> dict[str, Tensor]:
    """The optimizer's state, whole or in shards as the model lies, whichever way it was written."""
    if (folder / TENSORS_FILE).is_file() and not is_sharded(model):
        return load_file(folder / TENSORS_FILE)
    from lamoid.checkpoints.shards import read_shards

    return read_shards(folder, dict(model.named_parameters()))


def _load_trained(model: nn.Module, state: Mapping[str, Tensor], directory: Path) -> None:
    """Frozen parameters may be absent, trained ones not."""
    own = dict(model.named_parameters(remove_duplicate=False))
    placed = {name: placed_like(tensor, own[name]) if name in own else tensor for name, tensor in state.items()}
    missing, unexpected = model.load_state_dict(placed, strict=False)
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    wrong = [*unexpected, *(trained & set(missing))]
    if wrong:
        raise CheckpointError(f"{directory} does not fit this model: {', '.join(wrong)}; start a new run")


def with_earlier(recipe: R, directory: Path) -> R:
    """Take what was not given from the run's own recipe.yaml, so that the same command goes on anywhere."""
    file = directory / RECIPE_FILE
    earlier = load(file) if file.is_file() else {}
    unset = [f.name for f in fields(recipe) if getattr(recipe, f.name) is None and f.name != "threads"]
    return replace(recipe, **{name: earlier[name] for name in unset if name in earlier})
