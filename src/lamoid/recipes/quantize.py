"""`lamoid quantize`: a model as a smaller GGUF file, with the proof of what that changed."""

from dataclasses import dataclass
from pathlib import Path

from lamoid.errors import UsageError
from lamoid.recipes import convert
from lamoid.recipes.recipe import option


@dataclass(frozen=True)
class Recipe:
    """Write a model's weights in blocks of 32 with 8 or 4 bits each, into a GGUF file that the native engine runs.

    As lamoid convert does, with a certificate beside the result that says how much changed.
    """

    model: str = option("", "a model directory, a .gguf file, or the name of a fetched model", positional=True)
    format: str = option("q8_0", "bits of a weight and its block's numbers", choices=("q8_0", "q4_0", "q4_1"))
    out: str = option("", "the file to write (default: the model's name, the format, .gguf, in this folder)")
    threads: int | None = option(None, "cores to compute on (default: all)")
    json: bool = option(False, "print the certificate as one JSON object")


def run(recipe: Recipe) -> int:
    """Choose a name, and convert."""
    from lamoid.recipes.load import resolve

    if not recipe.model:
        raise UsageError("a model is needed, such as: lamoid quantize runs/mine --format q8_0")
    source = resolve(recipe.model)
    name = source.stem if source.is_file() else source.resolve().name
    target = Path(recipe.out or f"{name}-{recipe.format}.gguf")
    if target.suffix.lower() != ".gguf":
        raise UsageError(f"out is {recipe.out!r}; the name of a quantized model must end in .gguf")
    return convert.run(
        convert.Recipe(str(source), str(target), "gguf", recipe.format, threads=recipe.threads, json=recipe.json)
    )
