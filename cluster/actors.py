"""The executor on Ray: actors that build their worker once, are monitored, and are replaced when lost."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import chain
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
from storage import LeaseHeld
from storage.lease import follow, held_tokens, unshared

TICK_S = 1.0
"""Longest wait before the cluster is checked again."""
STRANDED_S = 60.0
"""How long a run may make no progress because no node is left that can hold a worker."""
GROWING_S = 900.0
"""The same on a cluster, whose autoscaler may add nodes for the pending workers."""
PENDING_S = 20.0
"""How long workers may be on their way before the run says so; it says so again every three times as long."""
BOILERPLATE = ("The actor died", "class_name:", "actor_id:", "pid:", "name:", "namespace:", "ip:")
"""Starts of the lines that Ray writes about every dead actor."""

logger = logging.getLogger(__name__)
_names_used: Counter[str] = Counter()


@dataclass(frozen=True)
class Built:
    """An actor's report on building its worker."""

    node: str
    """Id of the node it runs on."""
    seconds: float
    error: str | None = None
    user_error: bool = False
    """Whether the factory raised ValueError, which no retry can fix."""
    unshared: bool = False
    """Whether nothing was built, because the node does not share the output."""


class Host:
    """The actor: holds one worker and passes it one task at a time."""

    def __init__(self, name: str, threads: int) -> None:
        # Before the spec is unpickled, which may import torch: it reads these variables at import.
        pin_threads(threads)
        self.name, self.threads = name, threads
        self.worker: Worker | None = None

    def build(self, spec: WorkerSpec, retries: int, leases: dict[str, str]) -> Built:
        node = ray.get_runtime_context().get_node_id()
        follow(leases)
        start = time.perf_counter()
        if problem := unshared(leases):
            return Built(node, time.perf_counter() - start, problem, unshared=True)
        assert_ours()
        try:
            self.worker = build_with_retries(spec, retries)
        except (ValueError, WorkerFailed) as error:
            return Built(node, time.perf_counter() - start, str(error), isinstance(error, ValueError))
        pin_threads(self.threads)
        return Built(node, time.perf_counter() - start)

    def attempt(self, task: Task) -> Report:
        assert self.worker is not None
        return attempt(self.worker, task)

    def __repr__(self) -> str:
        return self.name


@dataclass
class Slot:
    """One position in the pool: an actor and its current work."""

    index: int
    name: str
    actor: Any  # Ray's types do not know the methods of an actor handle
    ref: Any
    """Pending result: first of building the worker, then of each task; None while idle."""
    node: str | None = None
    """Id of its node, known once the worker is built."""
    task: Task | None = None
    since: float = field(default_factory=time.perf_counter)


@dataclass(frozen=True)
class OnRay:
    """Runs the tasks on Ray actors of the connected session.

    Each actor has at most one task. A dead actor, or one on a lost node, is replaced and its task retried.
    """

    retries: int = 2
    patience_s: float | None = None
    """Seconds to wait while no node can hold a worker. None: 0 in an embedded Ray, where a worker that
    is too large raises ValueError at once; GROWING_S on a cluster, whose autoscaler sees pending workers."""

    def run(self, tasks: Sequence[Task], worker: WorkerSpec, observers: Iterable[Observer] = ()) -> Outcome:
        assert ray.is_initialized(), "OnRay runs inside cluster.session.connect()"
        ledger = Ledger(tasks, self.retries, observers)
        if not ledger.open:
            return ledger.outcome()
        default_patience_s = 0.0 if is_embedded() else GROWING_S
        patience_s = default_patience_s if self.patience_s is None else self.patience_s
        pool = WorkerPool(worker, ledger, self.retries, patience_s)
        pool.check_room()
        try:
            pool.work()
        finally:
            pool.shut_down()
        return ledger.outcome()


class WorkerPool:
    """The actors of one run and the loop that feeds, monitors and replaces them."""

    def __init__(self, spec: WorkerSpec, ledger: Ledger, retries: int, patience_s: float) -> None:
        self.spec, self.ledger = spec, ledger
        self.retries, self.patience_s = retries, patience_s
        self.slots: list[Slot] = []
        self.left_out: dict[str, list[Any]] = {}
        """Id of a node that does not share the output -> its actors. They live on, so that Ray has no room there for
        others; on a cluster that grows, a node can join after the check of a shared output."""
        self.deaths_in_a_row = 0
        self.last_change = time.monotonic()
        self.next_notice = self.last_change + PENDING_S

    def check_room(self) -> None:
        """Raise ValueError, or emit Waiting if the cluster may grow, if no node can hold a worker now."""
        try:
            resources.check_fits(self.spec)
        except ValueError as error:
            if not self.patience_s:
                raise
            self.ledger.emit(Waiting(str(error)))

    def work(self) -> None:
        """Run until every task is done or given up."""
        count = self.spec.count or resources.room(self.spec)
        for index in range(min(count, self.ledger.open)):
            self.slots.append(self.spawn(index))
        while self.ledger.open:
            self.assign()
            slot = self.wait()
            self.tell_pending()
            if slot is None:
                self.check_stranded()
                continue
            self.last_change = time.monotonic()
            if slot.task is None:
                self.built(slot)
            else:
                self.finished(slot, slot.task)

    def spawn(self, index: int) -> Slot:
        """Create an actor, which starts building its worker at once."""
        name = f"{self.spec.name}.{index}"
        _names_used[name] += 1
        if _names_used[name] > 1:  # dead actors release their name a little late
            name = f"{name}+{_names_used[name] - 1}"
        # Ray must not restart it: the pool replaces dead actors itself, because it must know which task died.
        options = {"num_cpus": self.spec.num_cpus, "num_gpus": self.spec.num_gpus, "max_restarts": 0}
        actor: Any = ray.remote(Host).options(name=name, max_task_retries=0, **options).remote(name, self.spec.threads)
        built = actor.build.options(name=f"{name} build").remote(self.spec, self.retries, held_tokens())
        return Slot(index, name, actor, built)

    def assign(self) -> None:
        """Give tasks to idle actors and remove actors that no task is left for."""
        if not self.ledger.queue:
            for slot in [slot for slot in self.slots if slot.task is None and slot.ref is not None]:
                self.remove(slot)  # still waits for room or builds
        draining = resources.draining_nodes()
        for slot in [slot for slot in self.slots if slot.ref is None]:
            if not self.ledger.queue:
                self.remove(slot)
            elif slot.node in draining:
                self.replace(slot, "its node is being drained")
            else:
                slot.task = self.ledger.take(slot.name)
                slot.since = time.perf_counter()
                named = slot.actor.attempt.options(name=f"{self.spec.name} {slot.task.key}")
                slot.ref = named.remote(slot.task)

    def wait(self) -> Slot | None:
        """The first slot whose pending result is ready, or None after TICK_S."""
        waiting = {slot.ref: slot for slot in self.slots if slot.ref is not None}
        assert waiting, "tasks are left and nobody works on them"
        ready, _ = ray.wait(list(waiting), num_returns=1, timeout=TICK_S)
        return waiting[ready[0]] if ready else None

    def built(self, slot: Slot) -> None:
        """Record that a slot's worker was, or was not, built."""
        try:
            built: Built = ray.get(slot.ref)
        except RayTaskError as error:
            reason = one_line(error.cause)
            raise WorkerFailed(f"no worker for {self.spec.name}: {reason}") from error
        except RayActorError as error:
            self.died_building(slot, error)
            return
        if built.unshared:
            self.leave_out(slot, built)
            return
        if built.user_error:
            raise ValueError(built.error)
        if built.error:
            raise WorkerFailed(built.error)
        slot.node, slot.ref = built.node, None
        self.deaths_in_a_row = 0
        self.ledger.emit(WorkerReady(slot.name, built.seconds))

    def leave_out(self, slot: Slot, built: Built) -> None:
        """Give the work of a slot to another node than its own."""
        if built.node not in self.left_out:
            self.ledger.emit(WorkerLost(slot.name, f"its node is left out: {built.error}"))
        self.left_out.setdefault(built.node, []).append(slot.actor)
        self.slots[self.slots.index(slot)] = self.spawn(slot.index)

    def died_building(self, slot: Slot, error: RayActorError) -> None:
        reason = death_reason(error)
        if not node_lost(error, slot.node):
            self.deaths_in_a_row += 1
            if self.deaths_in_a_row > self.retries:
                raise WorkerFailed(f"no worker for {self.spec.name}: {reason}") from error
        self.replace(slot, reason)

    def finished(self, slot: Slot, task: Task) -> None:
        """Record the end of a slot's task, however it ended."""
        try:
            report: Report = ray.get(slot.ref)
        except RayTaskError as error:
            if isinstance(error.cause, LeaseHeld):
                raise error.cause from None
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
            self.remove(slot)

    def replace(self, slot: Slot, reason: str) -> None:
        """Kill a slot's actor, if it still lives, and spawn another in its place."""
        self.ledger.emit(WorkerLost(slot.name, reason))
        _kill(slot.actor)
        self.slots[self.slots.index(slot)] = self.spawn(slot.index)

    def tell_pending(self) -> None:
        """Emit Waiting now and then while a growing cluster has no node yet for some of the workers."""
        now = time.monotonic()
        pending = sum(slot.node is None for slot in self.slots)
        if not (self.patience_s and pending) or now < self.next_notice:
            return
        self.next_notice = now + 3 * PENDING_S
        self.ledger.emit(Waiting(f"{pending} of {len(self.slots)} workers of {self.spec.name} are not ready yet"))

    def check_stranded(self) -> None:
        """Raise WorkerFailed if the run has waited too long while no node can hold a worker."""
        waited_s = time.monotonic() - self.last_change
        if waited_s < max(self.patience_s, STRANDED_S) or any(slot.node for slot in self.slots):
            return
        try:
            resources.check_fits(self.spec, without=self.left_out)
        except ValueError as error:
            note = f"; {len(self.left_out)} nodes do not share the output" if self.left_out else ""
            raise WorkerFailed(f"{error} (waited {waited_s:.0f} s{note})") from error

    def remove(self, slot: Slot) -> None:
        _kill(slot.actor)
        self.slots.remove(slot)

    def shut_down(self) -> None:
        """Kill every actor that is left, whatever it is doing."""
        for actor in (*(slot.actor for slot in self.slots), *chain.from_iterable(self.left_out.values())):
            _kill(actor)
        self.slots.clear()
        self.left_out.clear()


def death_reason(error: RayError) -> str:
    """One line on how an actor died, extracted from Ray's long message."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    informative = [line for line in lines if not line.startswith(BOILERPLATE)]
    text = " ".join(informative or lines).partition(" Some common causes")[0]
    text = text.rpartition("Worker exit detail: ")[2]
    if text.startswith("Worker unexpectedly exits with a connection error"):
        text = "its process ended without a word (crashed, killed, or out of memory)"
    return f"worker died: {text}"[:500]


def node_lost(error: RayError, node: str | None) -> bool:
    """Whether a worker died because its whole node did."""
    if isinstance(error, RayActorError) and error.preempted:
        return True
    return "node has died" in str(error) or (node is not None and not resources.is_alive(node))


def _kill(actor: Any) -> None:
    try:
        ray.kill(actor, no_restart=True)
    except RayError as error:
        logger.debug("the actor to kill is already gone: %s", one_line(error))
