"""The Ray form of the executor: actors that build once, are watched, and are replaced when lost."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.exceptions import RayActorError, RayError, RayTaskError

from cluster import resources
from cluster.events import Observer, Waiting, WorkerLost, WorkerReady
from cluster.executors import WorkerFailed, build_with_retries
from cluster.ledger import Ledger, Outcome, Task
from cluster.process import pin_threads
from cluster.session import is_embedded
from cluster.workers import Report, Worker, WorkerSpec, assert_ours, attempt, one_line

TICK_S = 1.0
"""Longest wait before looking at the cluster again."""
STRANDED_S = 60.0
"""How long a run may stand still because no node is left that holds a worker."""
GROWING_S = 900.0
"""The same on a cluster, which may make new nodes for the workers that wait."""
NOT_TELLING = ("The actor died", "class_name:", "actor_id:", "pid:", "name:", "namespace:", "ip:")
"""How those lines start that Ray writes of every dead actor."""

logger = logging.getLogger(__name__)
_names_used: Counter[str] = Counter()


@dataclass(frozen=True)
class Built:
    """What an actor tells once it has, or has not, built its worker."""

    node: str
    """Id of the node it runs on."""
    seconds: float
    error: str | None = None
    user_error: bool = False


class Host:
    """The actor: holds one worker and gives it one task at a time."""

    def __init__(self, name: str, threads: int) -> None:
        # Before anything of the spec is unpickled: torch reads these when it is imported.
        pin_threads(threads)
        self.name, self.threads = name, threads
        self.worker: Worker | None = None

    def build(self, spec: WorkerSpec, retries: int) -> Built:
        node = ray.get_runtime_context().get_node_id()
        start = time.perf_counter()
        assert_ours()
        try:
            self.worker = build_with_retries(spec, retries)
        except ValueError as error:
            return Built(node, time.perf_counter() - start, str(error), user_error=True)
        except WorkerFailed as error:
            return Built(node, time.perf_counter() - start, str(error))
        pin_threads(self.threads)
        return Built(node, time.perf_counter() - start)

    def attempt(self, task: Task) -> Report:
        assert self.worker is not None
        return attempt(self.worker, task)

    def __repr__(self) -> str:
        return self.name


@dataclass
class Slot:
    """One place in the crew: an actor and what it is doing."""

    index: int
    name: str
    actor: Any
    ref: Any
    """What is waited for: first the building, then each task; None while idle."""
    node: str | None = None
    """Id of its node, known once built."""
    task: Task | None = None
    since: float = field(default_factory=time.perf_counter)


@dataclass(frozen=True)
class OnRay:
    """Runs the tasks on Ray actors of the session that is connected.

    Each actor has at most one task. A dead actor or a lost node is replaced, its task tried again.
    """

    retries: int = 2
    patience_s: float | None = None
    """Seconds to wait where no node holds a worker. None: not at all in an embedded Ray, where a
    worker too large is a ValueError at once; GROWING_S on a cluster, whose autoscaler sees what
    waits."""

    def run(self, tasks: Sequence[Task], worker: WorkerSpec, observers: Iterable[Observer] = ()) -> Outcome:
        assert ray.is_initialized(), "OnRay runs inside cluster.session.connect()"
        ledger = Ledger(tasks, self.retries, observers)
        if not ledger.open:
            return ledger.outcome()
        crew = WorkerPool(worker, ledger, self.retries, self._patience_s())
        crew.check_room()
        try:
            crew.work()
        finally:
            crew.dismiss()
        return ledger.outcome()

    def _patience_s(self) -> float:
        if self.patience_s is None:
            return 0.0 if is_embedded() else GROWING_S
        return self.patience_s


class WorkerPool:
    """The actors of one run and the loop that feeds, watches and replaces them."""

    def __init__(self, spec: WorkerSpec, ledger: Ledger, retries: int, patience_s: float) -> None:
        self.spec, self.ledger = spec, ledger
        self.retries, self.patience_s = retries, patience_s
        self.slots: list[Slot] = []
        self.deaths_in_a_row = 0
        self.moved = time.monotonic()

    def work(self) -> None:
        """Until every task is done or given up."""
        count = self.spec.count or resources.room(self.spec)
        for index in range(min(count, self.ledger.open)):
            self.slots.append(self.hire(index))
        while self.ledger.open:
            self.hand_out()
            slot = self.wait()
            if slot is None:
                self.check_stranded()
                continue
            self.moved = time.monotonic()
            if slot.task is None:
                self.built(slot)
            else:
                self.finished(slot, slot.task)

    def hire(self, index: int) -> Slot:
        """A new actor that starts building at once."""
        name = _unused_name(f"{self.spec.name}.{index}")
        options = {
            "name": name,
            "num_cpus": self.spec.num_cpus,
            "num_gpus": self.spec.num_gpus,
            "max_restarts": 0,  # restarting here instead: the crew must know which task died
            "max_task_retries": 0,
        }
        actor: Any = ray.remote(Host).options(**options).remote(name, self.spec.threads)
        built = actor.build.options(name=f"{name} build").remote(self.spec, self.retries)
        return Slot(index, name, actor, built)

    def hand_out(self) -> None:
        """Tasks to idle actors; actors that no task is left for are let go."""
        if not self.ledger.queue:
            for slot in [slot for slot in self.slots if slot.task is None and slot.ref is not None]:
                self.dismiss_slot(slot)  # nothing is left for those that still wait for room
        leaving = resources.draining_nodes()
        for slot in [slot for slot in self.slots if slot.ref is None]:
            if not self.ledger.queue:
                self.dismiss_slot(slot)
            elif slot.node in leaving:
                self.replace(slot, "its node is being drained")
            else:
                self.start(slot)

    def start(self, slot: Slot) -> None:
        slot.task = self.ledger.take(slot.name)
        slot.since = time.perf_counter()
        named = slot.actor.attempt.options(name=f"{self.spec.name} {slot.task.key}")
        slot.ref = named.remote(slot.task)

    def wait(self) -> Slot | None:
        """The first slot with news, or None after a while without any."""
        waiting = {slot.ref: slot for slot in self.slots if slot.ref is not None}
        assert waiting, "tasks are left and nobody works on them"
        ready, _ = ray.wait(list(waiting), num_returns=1, timeout=TICK_S)
        return waiting[ready[0]] if ready else None

    def built(self, slot: Slot) -> None:
        """Book the end of a slot's building."""
        try:
            built: Built = ray.get(slot.ref)
        except RayTaskError as error:
            reason = one_line(error.cause)
            raise WorkerFailed(f"no worker for {self.spec.name}: {reason}") from error
        except RayActorError as error:
            self.died_building(slot, error)
            return
        if built.user_error:
            raise ValueError(built.error)
        if built.error:
            raise WorkerFailed(built.error)
        slot.node, slot.ref = built.node, None
        self.deaths_in_a_row = 0
        self.ledger.emit(WorkerReady(slot.name, built.seconds))

    def died_building(self, slot: Slot, error: RayActorError) -> None:
        reason = death_reason(error)
        if not node_lost(error, slot.node):
            self.deaths_in_a_row += 1
            if self.deaths_in_a_row > self.retries:
                raise WorkerFailed(f"no worker for {self.spec.name}: {reason}") from error
        self.replace(slot, reason)

    def finished(self, slot: Slot, task: Task) -> None:
        """Book the end of a slot's task, however it ended."""
        try:
            report: Report = ray.get(slot.ref)
        except RayTaskError as error:
            report = Report(time.perf_counter() - slot.since, error=one_line(error.cause))
        except RayError as error:
            self.died_working(slot, task, error)
            return
        slot.task = slot.ref = None
        self.ledger.settle(task, report)

    def died_working(self, slot: Slot, task: Task, error: RayError) -> None:
        seconds = time.perf_counter() - slot.since
        reason, lost = death_reason(error), node_lost(error, slot.node)
        self.ledger.lost(task, reason, node=lost, seconds=seconds)
        if self.ledger.queue:
            self.replace(slot, reason)
        else:
            self.ledger.emit(WorkerLost(slot.name, reason))
            self.dismiss_slot(slot)

    def replace(self, slot: Slot, reason: str) -> None:
        """Kill what is left of a slot's actor and hire another."""
        self.ledger.emit(WorkerLost(slot.name, reason))
        _kill(slot.actor)
        self.slots[self.slots.index(slot)] = self.hire(slot.index)

    def check_room(self) -> None:
        """Before the work: raise ValueError, or tell observers, where no node holds a worker."""
        try:
            resources.check_fits(self.spec)
        except ValueError as error:
            if not self.patience_s:
                raise
            self.ledger.emit(Waiting(str(error)))

    def check_stranded(self) -> None:
        """During it: raise WorkerFailed where waiting has no end, as no node holds a worker."""
        still = time.monotonic() - self.moved
        if still < max(self.patience_s, STRANDED_S) or any(slot.node for slot in self.slots):
            return
        try:
            resources.check_fits(self.spec)
        except ValueError as error:
            raise WorkerFailed(f"{error} (waited {still:.0f} s)") from error

    def dismiss_slot(self, slot: Slot) -> None:
        _kill(slot.actor)
        self.slots.remove(slot)

    def dismiss(self) -> None:
        """Kill every actor that is left, whatever it is doing."""
        for slot in self.slots:
            _kill(slot.actor)
        self.slots.clear()


def death_reason(error: RayError) -> str:
    """One line on how an actor died, from the many that Ray writes."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    telling = [line for line in lines if not line.startswith(NOT_TELLING)]
    text = " ".join(telling or lines).partition(" Some common causes")[0]
    text = text.rpartition("Worker exit detail: ")[2]
    if text.startswith("Worker unexpectedly exits with a connection error"):
        text = "its process ended without a word (crashed, killed, or out of memory)"
    return f"worker died: {text}"[:500]


def node_lost(error: RayError, node: str | None) -> bool:
    """Whether a worker went because its whole node did."""
    if isinstance(error, RayActorError) and error.preempted:
        return True
    return "node has died" in str(error) or (node is not None and not resources.is_alive(node))


def _unused_name(name: str) -> str:
    """The name, with a count where it was used before: dead actors free theirs a little late."""
    _names_used[name] += 1
    times = _names_used[name]
    return name if times == 1 else f"{name}+{times - 1}"


def _kill(actor: Any) -> None:
    try:
        ray.kill(actor, no_restart=True)
    except RayError as error:
        logger.debug("killing an actor that is gone already: %s", one_line(error))
