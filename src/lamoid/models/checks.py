"""What every configuration checks before anything is allocated: a damaged file must not ask for 10^9 layers."""

import dataclasses
import math
from typing import Any

from lamoid.errors import UsageError

_MOST = {"n_layers": 2**10, "vocab_size": 2**24, "max_seq_len": 2**24}
"""Largest sizes that are believed, 2^20 where nothing is said."""


def check_fields(config: Any, **most_of: int) -> None:
    """Counts are whole numbers above 0 (ids may be 0), dropout is a share below 1, other numbers are finite and above 0.

    `most_of` gives the largest size that is believed of a field, where it is another than usual.
    Raises UsageError naming the first field that is not so.
    """
    for field in dataclasses.fields(config):
        name, value = field.name, getattr(config, field.name)
        if field.type is int:
            least, most = 0 if name.endswith("_id") else 1, (_MOST | most_of).get(name, 2**20)
            if type(value) is not int or not least <= value <= most:
                raise UsageError(f"{name} is {value!r:.80}; it must be a whole number from {least} to {most}")
        elif field.type is bool:
            if type(value) is not bool:
                raise UsageError(f"{name} is {value!r:.80}; it must be true or false")
        elif field.type is float:
            is_number = isinstance(value, int | float) and not isinstance(value, bool)
            if name.endswith("dropout"):
                if not (is_number and 0 <= value < 1):
                    raise UsageError(f"{name} is {value!r:.80}; it must be a share from 0 up to, not including, 1")
            elif not (is_number and math.isfinite(value) and value > 0):
                raise UsageError(f"{name} is {value!r:.80}; it must be finite and above 0")


def check_choice(config: Any, name: str, choices: Any) -> None:
    """Raise UsageError where a field is none of its choices."""
    if getattr(config, name) not in tuple(choices):
        raise UsageError(f"{name} is {getattr(config, name)!r:.80}; it must be one of {', '.join(choices)}")


def check_groups(config: Any) -> None:
    """Raise UsageError where the key/value heads do not divide the heads."""
    if config.n_heads % config.n_kv_heads:
        raise UsageError(f"n_kv_heads is {config.n_kv_heads}; it must divide n_heads, which is {config.n_heads}")


def check_heads(config: Any) -> None:
    """Raise UsageError where the heads do not divide the width."""
    if config.d_model % config.n_heads:
        raise UsageError(f"n_heads is {config.n_heads}; it must divide d_model, which is {config.d_model}")
