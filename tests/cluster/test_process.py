"""SIGTERM stops a block by an exception, once, and the former handler is restored."""

from __future__ import annotations

import os
import signal
import threading

import pytest

from cluster.process import Terminated, sigterm_stops


def test_sigterm_becomes_an_interrupt_and_the_handler_comes_back() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Terminated, match="SIGTERM"), sigterm_stops():
        os.kill(os.getpid(), signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) is before
    assert issubclass(Terminated, KeyboardInterrupt)
    assert Terminated.code == 143


def test_a_second_signal_does_not_disturb_the_stop() -> None:
    cleaned = []

    def stop_twice() -> None:
        try:
            os.kill(os.getpid(), signal.SIGTERM)
        finally:
            os.kill(os.getpid(), signal.SIGTERM)
            cleaned.append(True)

    with pytest.raises(Terminated), sigterm_stops():
        stop_twice()
    assert cleaned


def test_other_threads_are_left_alone() -> None:
    failed: list[BaseException] = []

    def block() -> None:
        try:
            with sigterm_stops():
                pass
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=block)
    thread.start()
    thread.join()
    assert not failed
