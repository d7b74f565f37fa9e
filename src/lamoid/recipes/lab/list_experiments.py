"""`lamoid lab list`: the experiments, and what each asks."""

import json
from dataclasses import dataclass

from lamoid.recipes.recipe import option


@dataclass(frozen=True)
class Recipe:
    """List the experiments: name, claim, budget, and the rule by which each is judged."""

    json: bool = option(False, "print one JSON object")


def run(recipe: Recipe) -> int:
    """Print them in the order of the report."""
    from lamoid.recipes.lab.experiments import EXPERIMENTS, find

    found = [find(name) for name in EXPERIMENTS]
    if recipe.json:
        keys = ("name", "claim", "question", "budget", "rule", "trains")
        print(json.dumps({"experiments": [{key: getattr(e, key) for key in keys} for e in found]}, ensure_ascii=False))
        return 0
    width = max(map(len, EXPERIMENTS))
    for e in found:
        lines = (e.question, f"budget: {e.budget}{' (trains)' if e.trains else ''}", f"rule: {e.rule}")
        print(f"{e.name:<{width}}  {e.claim}")
        print("\n".join(f"{'':<{width}}    {line}" for line in lines))
    return 0
