"""The command line: verbs -> recipes. Each recipe's module is imported only when its verb is called, and torch later still."""

import importlib
import json
import os
import sys
import traceback
from collections.abc import Sequence

from lamoid.errors import LamoidError, UsageError

VERBS = {
    "tokenizer train": ("lamoid.recipes.train_tokenizer", "train a tokenizer on text"),
    "tokenizer show": ("lamoid.recipes.show_tokenizer", "show, merge by merge, how a text becomes tokens"),
    "pretrain": ("lamoid.recipes.pretrain", "train a model on raw text, from the beginning"),
    "finetune": ("lamoid.recipes.finetune", "teach a model from examples: all weights, LoRA, QLoRA, adapters"),
    "predict": ("lamoid.recipes.predict", "classes, tags or answers from a fine-tuned encoder"),
    "plan": ("lamoid.recipes.plan", "memory, time and size of pretrain, finetune or gqa, before it begins"),
    "explain-batch": (
        "lamoid.recipes.explain_batch",
        "show which tokens of a real batch are trained, and what looks wrong",
    ),
    "gqa": ("lamoid.recipes.gqa", "fewer key/value heads: convert, uptrain, and report"),
    "inspect": ("lamoid.recipes.inspect", "the inside of a model that reads a text, as pictures on one page"),
    "generate": ("lamoid.recipes.generate", "continue a prompt"),
    "chat": ("lamoid.recipes.chat", "talk with a model"),
    "eval": ("lamoid.recipes.evaluate", "measure a model on a text: loss, perplexity, bits per byte"),
    "embed": ("lamoid.recipes.embed", "turn each line of a text into a vector"),
    "convert": ("lamoid.recipes.convert", "a model from one format to another: Hugging Face, GGUF, Meta's"),
    "quantize": ("lamoid.recipes.quantize", "a model as a GGUF file with 8 or 4 bits a weight"),
    "bench": ("lamoid.recipes.bench", "how fast the native engine runs a model here"),
    "merge": ("lamoid.recipes.merge", "a LoRA or QLoRA and its base, as one model"),
    "get": ("lamoid.recipes.get", "fetch a named model, once"),
    "models": ("lamoid.recipes.models", "list the models that were fetched, and those that can be"),
    "lab list": ("lamoid.recipes.lab.list_experiments", "the experiments about the parts of a Llama, and their rules"),
    "lab run": ("lamoid.recipes.lab.run_experiment", "one experiment: its table, picture and verdict"),
    "lab report": ("lamoid.recipes.lab.write_report", "all experiments, on one page"),
}
"""Verb -> (module with a dataclass `Recipe` and `run(recipe)`, what it does)."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb; returns the exit code: 0, 2 wrong call, 3 bad input, 4 failed run, 130 after Ctrl-C."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in words
    words = [word for word in words if word != "--debug"]
    try:
        code = _dispatch(words)
        sys.stdout.flush()  # a reader that has gone is noticed here, not while Python shuts down
        return code
    except LamoidError as error:
        if debug:
            traceback.print_exc()
        print(f"lamoid: {' '.join(str(error).split())}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _dispatch(words: list[str]) -> int:
    if not words or words[0] in ("-h", "--help", "help"):
        print(_help())
        return 0
    if words[0] == "--version":
        from importlib.metadata import version

        print(f"lamoid {version('lamoid')}")
        return 0
    for verb, (module_name, _) in VERBS.items():
        verb_words = verb.split()
        if words[: len(verb_words)] == verb_words:
            from lamoid.recipes.recipe import parse

            module = importlib.import_module(module_name)
            rest, program = words[len(verb_words) :], f"lamoid {verb}"
            recipe = module.read(rest, program) if hasattr(module, "read") else parse(module.Recipe, rest, program)
            return int(module.run(recipe) or 0)
    known = [verb for verb in VERBS if verb.startswith(f"{words[0]} ")] or VERBS
    raise UsageError(f"{' '.join(words[:2])!r} is no verb; known are {', '.join(known)} (see lamoid --help)")


def print_json(value: object) -> None:
    """One JSON object on standard output, as `--json` promises."""
    print(json.dumps(value, ensure_ascii=False))


def _help() -> str:
    width = max(len(verb) for verb in VERBS)
    lines = [f"  lamoid {verb.ljust(width)}  {text}" for verb, (_, text) in VERBS.items()]
    return "\n".join(
        [
            "Lamoid raises Llamas: train, understand and run them on an ordinary computer.",
            "",
            *lines,
            "",
            "lamoid VERB --help shows a verb's settings. --debug shows where an error comes from.",
        ]
    )


if __name__ == "__main__":
    sys.exit(main())
