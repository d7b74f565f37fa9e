"""SIGTERM and Ctrl-C: the first asks the run to save and stop, the second leaves at once."""

import os
import signal
from types import FrameType, TracebackType

EXIT_CODES = {signal.SIGTERM: 0, signal.SIGINT: 130}


class Interrupt:
    """While entered, remembers the first signal in `received`. Calling it says whether there was one."""

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self._earlier: dict[signal.Signals, object] = {}

    def __enter__(self) -> "Interrupt":
        self._earlier = {number: signal.signal(number, self._receive) for number in EXIT_CODES}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for number, handler in self._earlier.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def __call__(self) -> bool:
        return self.received is not None

    @property
    def exit_code(self) -> int:
        """0 where nothing or SIGTERM came, 130 after Ctrl-C."""
        return 0 if self.received is None else EXIT_CODES[self.received]

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self.received is not None:
            os._exit(128 + number)
        self.received = signal.Signals(number)
