"""What can go wrong, and the exit code with which the command line says so.

    LamoidError
    ├── UsageError         2  a wrong call: an unknown flag, a value out of range (also a ValueError)
    │   ├── MissingExtra   2  an optional package is not installed (also an ImportError)
    │   └── EngineUnavailable  2  the native engine cannot run here, or not this model; torch can
    ├── DataError          3  a file or text that cannot be used (also a ValueError)
    │   └── CheckpointError  3  a model directory that cannot be used
    └── RunError           4  a run that failed: disk full, loss not finite (also a RuntimeError)

Every message is one line: the value, what is allowed, and what to do next.
"""


class LamoidError(Exception):
    """Root of all errors that Lamoid raises on purpose."""

    exit_code = 4


class UsageError(LamoidError, ValueError):
    """The call itself is wrong."""

    exit_code = 2


class MissingExtra(UsageError, ImportError):
    """An optional package is needed; the message names the command that installs it."""

    def __init__(self, package: str, extra: str) -> None:
        super().__init__(f"{package} is not installed; install it with: pip install 'lamoid[{extra}]'")


class EngineUnavailable(UsageError):
    """The native engine was asked for and cannot be used; the message is the reason."""


class DataError(LamoidError, ValueError):
    """Input data or a file cannot be used."""

    exit_code = 3


class CheckpointError(DataError):
    """A model directory or one of its files cannot be used."""


class RunError(LamoidError, RuntimeError):
    """A run began and could not go on."""

    exit_code = 4
