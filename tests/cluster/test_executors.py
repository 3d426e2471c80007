"""Both executors under the same scripted failures, counting how often each task really ran."""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from cluster import (
    Executor,
    InProcess,
    Outcome,
    Progress,
    TaskDone,
    TaskFailed,
    TaskStarted,
    WorkerFailed,
    WorkerLost,
    WorkerReady,
    WorkerSpec,
)
from cluster.process import process_title
from storage import Layout, LeaseHeld, SiteShape, Store
from support import cluster_fakes as fakes
from support.cluster_fakes import Scripted

Make = Callable[[int], Executor]


@pytest.fixture(params=["in_process", "ray"])
def make(request: pytest.FixtureRequest) -> Make:
    """Makes either executor with a number of retries."""
    if request.param == "in_process":
        return InProcess
    return request.getfixturevalue("make_ray")


@pytest.fixture
def make_ray(ray_local: Any) -> Make:
    from cluster.actors import OnRay

    return OnRay


def spec(folder: Path, *script: str, **settings: Any) -> WorkerSpec:
    settings.setdefault("name", "fake")
    return WorkerSpec(partial(fakes.build, folder, script), **settings)


def gone(pids: set[int], within: float = 10.0) -> bool:
    """Whether processes end within some seconds."""
    until = time.monotonic() + within
    while any(Path(f"/proc/{pid}").exists() for pid in pids):
        if time.monotonic() > until:
            return False
        time.sleep(0.02)
    return True


def test_every_task_runs_once_and_returns_by_key(make: Make, tmp_path: Path) -> None:
    tasks = [Scripted(f"t{i}") for i in range(7)]
    outcome = make(2).run(tasks, spec(tmp_path, count=2))
    assert outcome.ok
    assert {key: result["key"] for key, result in outcome.done.items()} == {task.key: task.key for task in tasks}
    assert fakes.marks(tmp_path, "run") == outcome.attempts == {task.key: 1 for task in tasks}


def test_nothing_to_do_builds_no_worker(make: Make, tmp_path: Path) -> None:
    assert make(2).run([], spec(tmp_path)) == Outcome({}, {}, {})
    assert not list(tmp_path.iterdir())


def test_failing_tasks_are_retried_and_the_others_not_held_up(make: Make, tmp_path: Path) -> None:
    scripts = {
        "a": ("raise",),
        "b": (),
        "c": ("raise", "exit"),
        "d": ("raise",) * 9,
        "e": ("exit",) * 9,
        "f": ("large",) * 9,
        "g": ("text",) * 9,
        "h": (),
    }
    tasks = [Scripted(*item) for item in scripts.items()]
    outcome = make(2).run(tasks, spec(tmp_path))
    assert set(outcome.done) == {"a", "b", "c", "h"}
    assert outcome.failed == {
        "d": "RuntimeError: script of d says so on two lines",
        "e": "SystemExit: leaving",
        "f": "AssertionError: a worker returned 1000032 bytes; data belong in the store",
        "g": "AssertionError: a worker returned str, not a dict",
    }
    ran = {"a": 2, "b": 1, "c": 3, "d": 3, "e": 3, "f": 3, "g": 3, "h": 1}
    assert fakes.marks(tmp_path, "run") == outcome.attempts == ran
    assert fakes.marks(tmp_path, "built") == {"x": 1}


def test_no_retries_means_one_attempt(make: Make, tmp_path: Path) -> None:
    outcome = make(0).run([Scripted("a", ("raise",)), Scripted("b")], spec(tmp_path))
    assert (set(outcome.done), set(outcome.failed)) == ({"b"}, {"a"})
    assert fakes.marks(tmp_path, "run") == {"a": 1, "b": 1}


def test_events_come_in_order(make: Make, tmp_path: Path) -> None:
    events: list[Any] = []
    make(1).run([Scripted("a", ("raise", "raise")), Scripted("b")], spec(tmp_path), [events.append])
    story = [
        (type(event), getattr(event, "key", None), getattr(event, "attempt", None))
        for event in events
        if not isinstance(event, Progress)
    ]
    assert story == [
        (WorkerReady, None, None),
        (TaskStarted, "a", 1),
        (TaskFailed, "a", 1),
        (TaskStarted, "b", 1),
        (TaskDone, "b", 1),
        (TaskStarted, "a", 2),
        (TaskFailed, "a", 2),
    ]
    failures = [event for event in events if isinstance(event, TaskFailed)]
    assert [failure.final for failure in failures] == [False, True]
    assert all("says so" in failure.error and "act(" in failure.trace for failure in failures)
    assert [event for event in events if isinstance(event, Progress)] == [
        Progress(done=0, failed=0, running=0, total=2),
        Progress(done=1, failed=0, running=0, total=2),
        Progress(done=1, failed=1, running=0, total=2),
    ]
    assert all(event.seconds >= 0 for event in events if isinstance(event, TaskDone | TaskFailed))


def test_two_tasks_with_the_same_key_are_a_programming_error(make: Make, tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="same key"):
        make(0).run([Scripted("a"), Scripted("a")], spec(tmp_path))


def test_negative_retries_are_refused(make: Make, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="retries: -1"):
        make(-1).run([Scripted("a")], spec(tmp_path))


def test_a_user_error_in_the_factory_is_raised_at_once(make: Make, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="weights: no such file"):
        make(2).run([Scripted("a")], spec(tmp_path, "value"))
    assert fakes.marks(tmp_path, "factory") == {"x": 1}
    assert not fakes.marks(tmp_path, "run")


def test_a_factory_may_succeed_later(make: Make, tmp_path: Path) -> None:
    assert make(2).run([Scripted("a")], spec(tmp_path, "raise", "raise")).ok
    assert fakes.marks(tmp_path, "factory") == {"x": 3}


def test_a_factory_that_never_succeeds_ends_the_run(make: Make, tmp_path: Path) -> None:
    with pytest.raises(WorkerFailed, match="no worker for fake: RuntimeError: script of factory"):
        make(1).run([Scripted("a")], spec(tmp_path, *["raise"] * 9))
    assert fakes.marks(tmp_path, "factory") == {"x": 2}


def test_an_exception_of_an_observer_ends_the_run(make: Make, tmp_path: Path) -> None:
    def fussy(event: Any) -> None:
        if isinstance(event, TaskDone):
            raise OSError("no space for the log")

    with pytest.raises(OSError, match="no space for the log"):
        make(2).run([Scripted(f"t{i}") for i in range(5)], spec(tmp_path), [fussy])
    assert sum(fakes.marks(tmp_path, "run").values()) == 1
    assert gone(fakes.processes(tmp_path) - {os.getpid()})


def test_random_scripts_have_the_same_outcome_in_both(make_ray: Make, tmp_path: Path) -> None:
    rng = random.Random(5)
    tasks = [
        Scripted(f"t{i}", tuple(rng.choices(["ok", "raise", "exit"], [1, 3, 3], k=rng.randint(0, 4))))
        for i in range(25)
    ]
    outcomes = []
    for number, executor in enumerate([InProcess(2), make_ray(2)]):
        folder = tmp_path / str(number)
        folder.mkdir()
        outcome = executor.run(tasks, spec(folder, count=2))
        assert fakes.marks(folder, "run") == outcome.attempts
        outcomes.append((set(outcome.done), outcome.failed, outcome.attempts))
    assert outcomes[0] == outcomes[1]
    assert outcomes[0][1]


def test_threads_are_pinned_alike_and_restored(make: Make) -> None:
    import torch

    before = torch.get_num_threads(), os.environ.get("OMP_NUM_THREADS")
    seen = {}
    for threads in (1, 2):
        worker = WorkerSpec(fakes.build_threads, threads=threads, name="threads")
        seen[threads] = make(0).run([Scripted("a")], worker).done["a"]
        assert seen[threads]["torch"] == threads
        assert seen[threads]["variable"] == str(threads)
    assert (torch.get_num_threads(), os.environ.get("OMP_NUM_THREADS")) == before


def test_bytes_are_the_same_in_both(make_ray: Make) -> None:
    worker = WorkerSpec(fakes.build_threads, threads=2, name="threads")
    here, there = (executor.run([Scripted("a")], worker).done["a"] for executor in (InProcess(0), make_ray(0)))
    assert here == there


# In a process of their own, tasks may do worse.


def test_a_poisonous_task_fails_and_the_others_go_on(make_ray: Make, tmp_path: Path) -> None:
    events: list[Any] = []
    tasks = [Scripted("p", ("die",) * 9), *[Scripted(f"t{i}") for i in range(6)]]
    outcome = make_ray(2).run(tasks, spec(tmp_path, count=2), [events.append])
    assert set(outcome.done) == {f"t{i}" for i in range(6)}
    assert outcome.failed == {"p": "worker died: its process ended without a word (crashed, killed, or out of memory)"}
    assert fakes.marks(tmp_path, "run")["p"] == outcome.attempts["p"] == 3
    assert sum(isinstance(event, WorkerLost) for event in events) == 3


def test_a_task_whose_worker_died_once_is_done_by_another(make_ray: Make, tmp_path: Path) -> None:
    outcome = make_ray(1).run([Scripted("a", ("die",)), Scripted("b")], spec(tmp_path))
    assert outcome.ok
    assert fakes.marks(tmp_path, "run") == outcome.attempts == {"a": 2, "b": 1}
    assert fakes.marks(tmp_path, "built") == {"x": 2}


def test_a_factory_that_kills_its_process_ends_the_run(make_ray: Make, tmp_path: Path) -> None:
    with pytest.raises(WorkerFailed, match="no worker for fake: worker died: its process"):
        make_ray(1).run([Scripted("a")], spec(tmp_path, *["die"] * 9))
    assert fakes.marks(tmp_path, "factory") == {"x": 2}


def test_each_worker_builds_once_and_holds_one_task(make_ray: Make, tmp_path: Path) -> None:
    import ray

    events: list[Any] = []
    named: set[str] = set()

    def look(event: Any) -> None:
        events.append(event)
        if isinstance(event, TaskStarted):
            named.update(ray.util.list_named_actors())

    outcome = make_ray(0).run([Scripted(f"t{i}") for i in range(40)], spec(tmp_path, count=2, name="hold"), [look])
    assert outcome.ok
    assert 1 <= fakes.marks(tmp_path, "built")["x"] <= 2
    assert {result["process"] for result in outcome.done.values()} <= fakes.processes(tmp_path)
    assert os.getpid() not in fakes.processes(tmp_path)
    busy, most = set(), 0
    workers: dict[str, str] = {}
    for event in events:
        if isinstance(event, TaskStarted):
            assert event.worker not in [workers[key] for key in busy]
            busy.add(event.key)
            workers[event.key] = event.worker
        if isinstance(event, TaskDone):
            busy.remove(event.key)
        most = max(most, len(busy))
    assert most <= 2
    assert set(workers.values()) <= named
    assert all(name.startswith("hold.") for name in workers.values())
    assert gone(fakes.processes(tmp_path))


def test_interrupting_kills_the_actors_and_their_work(make_ray: Make, tmp_path: Path) -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell may have started us with it ignored

    def interrupt(event: Any) -> None:
        if isinstance(event, TaskStarted):
            threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT)).start()

    start = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        make_ray(0).run([Scripted("a", ("sleep",))], spec(tmp_path), [interrupt])
    assert gone(fakes.processes(tmp_path))
    assert time.monotonic() - start < 15


def test_interrupting_stops_the_run_in_process_too(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        InProcess(2).run([Scripted("a", ("interrupt",)), Scripted("b")], spec(tmp_path))
    assert fakes.marks(tmp_path, "run") == {"a": 1}


def test_a_worker_writes_nothing_once_its_run_has_lost_the_store(make_ray: Make, tmp_path: Path) -> None:
    layout = Layout(samples=2, shard=2, variants=("trained",), sites=(SiteShape("mid.0", 4, 2),), latent=())
    store = Store.create(str(tmp_path), layout)
    worker = WorkerSpec(partial(fakes.noting, store.url), name="fake")
    with store.lease("ours"):
        assert make_ray(2).run([Scripted("a"), Scripted("b")], worker).ok
    with pytest.raises(LeaseHeld, match="writes nothing more"), store.lease("ours"):
        make_ray(2).run([Scripted("c", ("rob",)), Scripted("d")], worker)
    assert store.list("notes/") == ["notes/a", "notes/b"]


def test_a_worker_that_fits_on_no_node_is_refused_before_work(make_ray: Make, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="num_gpus=1; the largest node has 2 CPUs, 0 GPUs"):
        make_ray(0).run([Scripted("a")], spec(tmp_path, num_gpus=1))
    assert not list(tmp_path.iterdir())


def test_as_many_workers_as_fit(make_ray: Make, tmp_path: Path) -> None:
    from cluster import resources

    assert resources.room(spec(tmp_path, num_cpus=0.5)) == 4
    tasks = [Scripted(f"t{i}") for i in range(3)]
    outcome = make_ray(0).run(tasks, spec(tmp_path, num_cpus=2, count=None))
    assert outcome.ok
    assert fakes.marks(tmp_path, "built") == {"x": 1}


@pytest.mark.skipif(not Path("/proc/self/cmdline").exists(), reason="reads Linux's /proc")
def test_a_workers_process_shows_its_current_work(ray_local: Any) -> None:
    import ray

    def shown() -> list[str]:
        def title() -> str:
            return Path("/proc/self/cmdline").read_bytes().strip(b"\0").decode()

        with process_title("probe-trained-up.1"):
            inside = title()
        return [inside, title()]

    inside, after = ray.get(ray.remote(shown).options(num_cpus=0).remote())
    assert inside.strip() == "ray::probe-trained-up.1"
    assert "probe" not in after


def test_a_node_that_does_not_share_the_output_is_left_out(
    make_ray: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first worker sees another folder at the output's path, as on a node that joins a cluster without it."""
    seen = iter([{str(tmp_path / "private"): "token"}])
    monkeypatch.setattr("cluster.actors.held_tokens", lambda: next(seen, {}))
    lost: list[str] = []

    def look(event: Any) -> None:
        if isinstance(event, WorkerLost):
            lost.append(event.reason)

    outcome = make_ray(0).run([Scripted("a"), Scripted("b")], spec(tmp_path, count=1), [look])
    assert outcome.ok
    assert lost == [f"its node is left out: {tmp_path}/private is another folder there"]


def test_a_run_without_any_node_that_shares_the_output_ends_with_one_line(
    make_ray: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cluster.actors.held_tokens", lambda: {str(tmp_path / "private"): "token"})
    monkeypatch.setattr("cluster.actors.STRANDED_S", 0.5)
    with pytest.raises(WorkerFailed, match="a worker of fake needs .* 1 nodes do not share the output"):
        make_ray(0).run([Scripted("a")], spec(tmp_path, count=1))
