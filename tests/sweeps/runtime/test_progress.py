"""What a command shows while it works: stages, the time left of all of them, and never a long silence."""

from __future__ import annotations

import io
import re

import pytest

from cluster import Progress, TaskDone, TaskFailed
from sweeps.runtime import progress
from sweeps.runtime.progress import Display, Pace
from sweeps.runtime.units import about


class Terminal(io.StringIO):
    """A stream that is a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Seconds that the module sees, and no thread that looks at them by itself."""
    now = [1000.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(progress, "TICK", 0.0)
    monkeypatch.setattr(Display, "_tick", lambda self, stop: None)
    return now


# of a default run on 2 cores: seconds until the first shard, seconds of all, shards, seconds expected
MEASURED = {"sample": (17.4, 147.0, 26, 145.0), "label": (6.0, 9.0, 13, 11.0), "intervene": (10.0, 106.0, 64, 102.0)}


@pytest.mark.parametrize("speed", [1.0, 4.0, 0.25])
def test_one_time_left_for_the_whole_run_from_the_first_finished_piece(clock: list[float], speed: float) -> None:
    """Estimates of all stages on a machine that is `speed` times slower than the one of the expectations."""
    display = Display(io.StringIO())
    display.expect({name: expected for name, (*_, expected) in MEASURED.items()})
    total = sum(seconds for _, seconds, _, _ in MEASURED.values()) * speed
    started, errors = clock[0], []
    for name, (first, seconds, pieces, _) in MEASURED.items():
        begun = clock[0]
        with display.stage(name, name, "shards") as observer:
            assert (display.left(clock[0]) is None) == (name == "sample")
            for done in range(1, pieces + 1):
                clock[0] = begun + speed * (first + (seconds - first) * (done - 1) / (pieces - 1))
                observer(Progress(done, 0, 1, pieces))
                left, truth = display.left(clock[0]), total - (clock[0] - started)
                assert left is not None
                errors.append(((clock[0] - started) / total, left, truth))
    if speed == 1:
        assert all(abs(left - truth) < 0.2 * total for _, left, truth in errors)
    late = [(left, truth) for share, left, truth in errors if share > 0.4]
    assert all(abs(left - truth) < 0.25 * total for left, truth in late)


def test_stages_are_numbered_and_those_without_work_left_out(clock: list[float]) -> None:
    display = Display(io.StringIO())
    display.expect({"sample": 100.0, "label": 10.0, "curate": 0.0, "report": 5.0})
    with display.stage("sample", "sampling", "shards") as observer:
        observer(Progress(2, 1, 0, 3))
        clock[0] += 71
    display.skip("label")
    with display.stage("report", "report"):
        clock[0] += 5.04
    assert display.stream.getvalue().splitlines() == [  # type: ignore[attr-defined]
        "stage 1/4 sampling: 3 shards in 1 min 11 s, 1 failed",
        "stage 2/3 report: 5.0 s",
    ]


def test_no_silence_is_longer_than_ten_seconds(clock: list[float]) -> None:
    display, shown = Display(stream := io.StringIO()), []
    display.expect({"sample": 100.0})
    with display.stage("sample", "sampling", "shards") as observer:
        for second in range(60):
            clock[0] += 1
            if second == 30:
                observer(Progress(5, 0, 1, 20))
            before = stream.getvalue()
            display._show(clock[0])
            if stream.getvalue() != before:
                shown.append(clock[0])
    gaps = [b - a for a, b in zip([1000.0, *shown], [*shown, clock[0]], strict=True)]
    assert max(gaps) <= progress.EVERY
    lines = stream.getvalue().splitlines()
    assert lines[0] == "stage 1/1 sampling: 10 s"
    assert re.fullmatch(r"stage 1/1 sampling: 5/20 shards, about \d+ (s|min) left", lines[3]), lines


def test_the_thread_shows_progress_while_the_work_is_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    import time

    monkeypatch.setattr(progress, "TICK", 0.01)
    monkeypatch.setattr(progress, "EVERY", 0.05)
    display = Display(stream := io.StringIO())
    with display.stage("sample", "sampling", "shards"):
        end = time.monotonic() + 5
        while stream.getvalue().count("\n") < 2 and time.monotonic() < end:
            time.sleep(0.01)
    assert all(line.startswith("sampling: ") for line in stream.getvalue().splitlines()[:2])
    assert stream.getvalue().count("\n") >= 2


def test_a_terminal_shows_a_bar_and_loses_no_line(clock: list[float]) -> None:
    display = Display(stream := Terminal())
    display.expect({"sample": 20.0, "report": 5.0})
    with display.stage("sample", "sampling", "shards") as observer:
        observer(Progress(2, 0, 1, 4))
        display._show(clock[0])
        observer(TaskFailed("sample/trained/00001", 1, 1.0, "no room", final=True))
        display._show(clock[0])
    shown = stream.getvalue()
    assert "stage 1/2 sampling" in shown
    assert "2/4 shards, about" in shown
    assert "sample/trained/00001: no room (given up)\n" in shown
    assert shown.endswith("stage 1/2 sampling: 4 shards in 0.0 s\n")


@pytest.mark.parametrize(("options", "lines"), [({"quiet": True}, 1), ({}, 3), ({"verbose": True}, 4)])
def test_how_much_is_shown(options: dict[str, bool], lines: int, clock: list[float]) -> None:
    display = Display(stream := io.StringIO(), **options)
    display.say("Ray: 2 CPUs")
    with display.stage("label", "labelling", "shards") as observer:
        observer(TaskDone("label/00000", 1, 2.0, {}))
        observer(TaskFailed("label/00001", 1, 1.0, "no room", final=True))
        observer(Progress(1, 1, 0, 2))
    shown = stream.getvalue().splitlines()
    assert len(shown) == lines
    assert "label/00001: no room (given up)" in shown


def test_a_part_of_a_stage_has_a_pace_of_its_own() -> None:
    pace = Pace()
    for done, now in ((1, 100.0), (2, 200.0), (0, 200.0), (1, 220.0), (3, 260.0)):
        pace.update(done, now)
    assert pace.seconds(260.0) == 20.0


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(2, "about 5 s"), (42, "about 40 s"), (415, "about 7 min"), (4700, "about 78 min"), (9000, "about 2.5 h"),
     (139_900, "about 39 h"), (800_000, "about 9 days")],
)  # fmt: skip
def test_estimates_are_as_coarse_as_they_are(seconds: float, words: str) -> None:
    assert about(seconds) == words
