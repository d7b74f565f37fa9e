"""The experiments by name, in the order of the report."""

import difflib
import importlib

from lamoid.errors import UsageError
from lamoid.recipes.lab.experiment import Experiment

EXPERIMENTS = {
    "rmsnorm-speed": "lamoid.recipes.lab.rmsnorm_speed",
    "rope-relative": "lamoid.recipes.lab.rope_relative",
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
