"""The experiments by name, in the order of the report."""

import difflib
import importlib

from lamoid.errors import UsageError
from lamoid.recipes.lab.experiment import Experiment

EXPERIMENTS = {
    "rmsnorm-speed": "lamoid.recipes.lab.rmsnorm_speed",
    "rope-relative": "lamoid.recipes.lab.rope_relative",
    "order-matters": "lamoid.recipes.lab.order_matters",
    "score-scaling": "lamoid.recipes.lab.score_scaling",
    "kv-cache": "lamoid.recipes.lab.kv_cache",
    "flash-memory": "lamoid.recipes.lab.flash_memory",
    "tokenizers": "lamoid.recipes.lab.tokenizers",
    "norm-gradients": "lamoid.recipes.lab.norm_gradients",
    "gqa-speed": "lamoid.recipes.lab.gqa_speed",
    "norm-place": "lamoid.recipes.lab.norm_place",
    "positions": "lamoid.recipes.lab.positions",
    "extrapolation": "lamoid.recipes.lab.extrapolation",
    "activations": "lamoid.recipes.lab.activations",
    "gqa-quality": "lamoid.recipes.lab.gqa_quality",
    "gqa-conversion": "lamoid.recipes.lab.gqa_conversion",
    "tuning-methods": "lamoid.recipes.lab.tuning_methods",
    "adamw": "lamoid.recipes.lab.adamw",
    "masking": "lamoid.recipes.lab.masking",
    "scaling": "lamoid.recipes.lab.scaling",
}
"""Name -> the module whose EXPERIMENT it is."""


def find(name: str) -> Experiment:
    """The experiment of a name. Raises UsageError where there is none."""
    if name not in EXPERIMENTS:
        near = difflib.get_close_matches(name, EXPERIMENTS, n=1, cutoff=0.0)[0]
        raise UsageError(f"{name!r} is no experiment; did you mean {near}? (lamoid lab list shows all)")
    experiment = importlib.import_module(EXPERIMENTS[name]).EXPERIMENT
    assert isinstance(experiment, Experiment) and experiment.name == name
    return experiment
