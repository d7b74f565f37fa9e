"""One file for each thing that one can do: a dataclass of settings, and `run(settings)`. Torch is imported inside `run`."""
