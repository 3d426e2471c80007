"""Temporary changes to this process: environment variables, threads, process title, response to SIGTERM.

Everything here leaves the process as it was when its block ends.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from types import FrameType

THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")


@contextmanager
def temporary_environment(values: Mapping[str, str], also_restore: Iterable[str] = ()) -> Iterator[None]:
    """Set environment variables inside the block and restore their former values after it.

    `also_restore` names further variables that the block may change itself.
    """
    before = {name: os.environ.get(name) for name in (*values, *also_restore)}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def pin_threads(threads: int) -> None:
    """Fix the number of threads of numerical libraries in this process, for good.

    It works whether torch is imported before or after the call.
    """
    os.environ.update(dict.fromkeys(THREAD_VARIABLES, str(threads)))
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(threads)


@contextmanager
def pinned_threads(threads: int) -> Iterator[None]:
    """`pin_threads` inside the block; the process's own settings are restored after it."""
    torch = sys.modules.get("torch")
    torch_threads = torch.get_num_threads() if torch else 0
    with temporary_environment({}, THREAD_VARIABLES):
        pin_threads(threads)
        try:
            yield
        finally:
            if torch:
                torch.set_num_threads(torch_threads)


@contextmanager
def process_title(name: str) -> Iterator[None]:
    """Show `name` as the title of this Ray worker's process in Ray's dashboard and in `ps`.

    For work that Ray cannot name: an actor that Tune reuses keeps the name it was created with.
    """
    try:
        # Ray has no public name for these two, and its type stubs omit them.
        from ray._raylet import getproctitle, setproctitle  # type: ignore[attr-defined]
    except ImportError:
        yield
        return
    before = getproctitle()
    setproctitle(f"ray::{name}")
    try:
        yield
    finally:
        setproctitle(before)


class Terminated(KeyboardInterrupt):
    """SIGTERM arrived: stop as on Ctrl-C, leaving everything so that the run can be resumed."""

    code = 128 + signal.SIGTERM
    """Exit code of a process that ended for this reason."""


@contextmanager
def sigterm_restored() -> Iterator[None]:
    """Restore the SIGTERM handler after the block. Does nothing outside the main thread, which alone may set it."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if before is not None:  # None: the handler was not set from Python
            signal.signal(signal.SIGTERM, before)


@contextmanager
def sigterm_stops() -> Iterator[None]:
    """Raise `Terminated` in the block when SIGTERM arrives; the former handler is restored after it.

    Enter it inside `session.connect`, because ray.init sets a handler of its own. Further signals
    are ignored while the process stops. Outside the main thread it does nothing.
    """

    def stop(number: int, frame: FrameType | None) -> None:
        signal.signal(number, signal.SIG_IGN)
        raise Terminated(f"signal {signal.Signals(number).name}")

    with sigterm_restored():
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, stop)
        yield
