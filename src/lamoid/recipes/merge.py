"""`lamoid merge`: an adapter and its base -> one model, with the drift between the two in its certificate."""

import json
from dataclasses import dataclass
from pathlib import Path

from lamoid.errors import UsageError
from lamoid.recipes.recipe import option, say


@dataclass(frozen=True)
class Recipe:
    """Merge a LoRA or QLoRA into the base that it was trained on: a Hugging Face directory, or a GGUF file.

    A base that was quantized in training is merged as it was then, dequantized; quantizing the result is a choice.
    """

    adapter: str = option("", "the directory of an adapter, from finetune or from peft", positional=True)
    out: str = option("", "the directory to write; with --quantize, or a name that ends in .gguf, a GGUF file")
    dtype: str = option("float32", "type of the merged weights; bfloat16 rounds them", choices=("float32", "bfloat16"))
    quantize: str | None = option(
        None, "quantize the merged weights, into a GGUF file", choices=("q8_0", "q4_0", "q4_1")
    )
    threads: int | None = option(None, "cores to compute on (default: all)")
    json: bool = option(False, "print the certificate as one JSON object")


def run(recipe: Recipe) -> int:
    """Load the base with the adapter, write the whole model, compare the two, and say how far they are apart."""
    from lamoid.checkpoints.certificate import probe_ids
    from lamoid.checkpoints.conversion import convert
    from lamoid.checkpoints.merged import drift, in_float32, merge_encoder, merged_source
    from lamoid.models.heads import HeadedEncoder
    from lamoid.models.llama import Llama
    from lamoid.recipes.adapted import open_mergeable
    from lamoid.recipes.load import model_directory, set_threads

    if not recipe.adapter or not recipe.out:
        raise UsageError("an adapter and --out are needed, such as: lamoid merge runs/support-bot --out merged")
    set_threads(recipe.threads)
    target = Path(recipe.out).expanduser()
    if recipe.quantize and target.suffix.lower() != ".gguf":
        target = target.with_name(f"{target.name}.gguf")
    dtype = recipe.quantize.upper() if recipe.quantize else {"float32": "F32", "bfloat16": "BF16"}[recipe.dtype]
    directory = model_directory(recipe.adapter)
    model, tokenizer, end_ids = open_mergeable(directory)
    if isinstance(model, HeadedEncoder):
        if target.suffix.lower() == ".gguf":
            raise UsageError(f"{target} would be a GGUF file, which holds Llamas alone; give --out a directory")
        proof = merge_encoder(model, target, tokenizer, dtype)
    else:
        assert isinstance(model, Llama)  # nothing else can be adapted
        source = merged_source(model, directory, tokenizer, end_ids)
        if source.config != model.config:
            say("note: the LoRA on the output matrix unties it from the embedding; the merged model has both")
        exact, ids = dtype == "F32" and in_float32(model), probe_ids(source)
        proof = convert(
            source, target, dtype=dtype, notify=say, measure=lambda result: drift(model, result, ids, exact=exact)
        )
    if recipe.json:
        print(json.dumps(proof, ensure_ascii=False))
        return 0
    found = proof["drift"]
    print(
        f"{target}: the merged model as {proof['dtype'].lower()}, read again and compared with its adapter on its base"
    )
    print(
        f"largest change of a logit {found['largest_logit_difference']:.3g} ({found['relative']:.2g} of the largest); "
        f"the same is most likely at {found['same_most_likely']:.1%} of the places; "
        f"mean KL divergence {found['mean_kl_nats']:.2g} nats"
    )
    for name, perplexity in found.get("perplexity", {}).items():
        print(f"perplexity of a fixed text, {name}: {perplexity:.4f}")
    return 0
