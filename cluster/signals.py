"""SIGTERM as a clean stop: a scheduler's request to end becomes an exception in the main thread."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Terminated(KeyboardInterrupt):
    """SIGTERM arrived: stop as on Ctrl-C, leaving everything so that the run can be resumed."""

    code = 128 + signal.SIGTERM
    """Exit code of a process that ended for this reason."""


@contextmanager
def sigterm_stops() -> Iterator[None]:
    """Raise `Terminated` in the block when SIGTERM arrives; the old handler comes back after it.

    Enter it inside `session.connect`: ray.init sets a handler of its own. Later signals during the
    stop are ignored, so that it comes to its end. Outside the main thread it does nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, _raise)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _raise(number: int, frame: FrameType | None) -> None:
    signal.signal(number, signal.SIG_IGN)
    raise Terminated(f"signal {signal.Signals(number).name}")
