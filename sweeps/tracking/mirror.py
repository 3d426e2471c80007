"""W&B mirror of a sweep, written by the driver from the results tables.

    result = mirror(store, config, mode="offline", runs="site")

All results are in the tables, so a mirror can be deleted and written again. Runs are always written as offline files;
`mode="online"` then sends them with `wandb sync` in a separate process. A server that is slow, limits rates or cannot
be reached therefore loses nothing and does not delay the sweep.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from cluster.process import temporary_environment
from storage import Store
from sweeps.analysis import tables
from sweeps.analysis.tables import Json, RunData
from sweeps.report import build
from sweeps.report.build import Drawn
from sweeps.tracking import summary
from sweeps.tracking.place import MARKER, local_folder, server
from sweeps.tracking.runs import CURVES, DRIVER, EPOCH, PlannedRun, plan, summary_digest

if TYPE_CHECKING:
    import wandb

MODES = ("offline", "online", "disabled")
LIMIT_S = 300.0
"""seconds that writing, and then sending, may take"""
SAVED_EVERY = 50
"""runs after which the marker is saved, so that hundreds of runs that take longer are not written again"""
SYNC = ("-m", "wandb", "sync", "--yes", "-n", "2")
"""arguments of the Python process that sends runs, two at a time"""
SET_ASIDE = (
    "WANDB_SWEEP_ID", "WANDB_SWEEP_PARAM_PATH", "WANDB_RUN_ID", "WANDB_RESUME", "WANDB_RESUME_FROM", "WANDB_FORK_FROM",
    "WANDB_CONFIG_PATHS", "WANDB_IGNORE_GLOBS", "WANDB_DISABLED", "WANDB_LAUNCH", "WANDB_LAUNCH_CONFIG_PATH",
)  # fmt: skip
"""W&B's variables that would change which runs the mirror consists of, or what is in them"""
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Mirrored:
    """Numbers of runs of one call of `mirror`."""

    written: int = 0
    kept: int = 0
    """already in the folder with the same content"""
    sent: int = 0
    """sent to the server by this call"""
    problem: str = ""
    """why the mirror is incomplete; empty if it is complete"""


def mirror(
    store: Store,
    config: Json,
    mode: str = "offline",
    runs: str = "site",
    limit_s: float = LIMIT_S,
    drawn: Drawn | None = None,
) -> Mirrored:
    """Write one W&B run per (variant, site), or per probe with `runs="cell"`, and a summary run.

    The summary run shows the figures of the report: of `drawn`, if the caller has drawn it already. Runs that are in
    the folder with the same content are kept. Any problem with W&B, including a timeout of `limit_s` seconds, becomes
    one warning line and `Mirrored.problem`. Raises only ValueError, for an unknown `mode` or `runs`.
    """
    if mode not in MODES:
        raise ValueError(f"tracking.mode={mode!r}: expected one of {', '.join(MODES)}")
    if mode == "disabled":
        return Mirrored()
    run = drawn.context.run if drawn else tables.load(store, config)
    planned = plan(run, runs)
    folder = local_folder(store.url)
    done = Mirrored()
    try:
        with own_environment(folder):
            done = _within(limit_s, lambda: _write(run, store, planned, folder, drawn))
            if mode == "online":
                marker = Marker(folder)
                ids = [*(p.id for p in planned), run.wandb_id("summary"), *marker.drivers()]
                done = replace(done, sent=send(marker, ids, limit_s))
    except Exception as error:  # W&B is a mirror: nothing it does may stop a sweep
        problem = " ".join(f"{type(error).__name__}: {error}".split())
        log.warning("W&B mirror incomplete, results are safe in the tables: %s", problem)
        done = replace(done, problem=problem)
    return done


@contextmanager
def own_environment(folder: Path, warn: bool = True) -> Iterator[None]:
    """W&B's variables as the mirror needs them, inside the block.

    Those in SET_ASIDE are taken away, with one line. If the home folder cannot be written, W&B's own files go beside
    the runs.
    """
    aside = {name: os.environ.pop(name) for name in SET_ASIDE if name in os.environ}
    if aside and warn:
        log.warning("W&B: %s is set aside, which would change what the mirror is", ", ".join(aside))
    kinds = ("CONFIG", "CACHE", "DATA")
    homeless = not os.access(os.path.expanduser("~"), os.W_OK)
    elsewhere = {f"WANDB_{kind}_DIR": str(folder / kind.lower()) for kind in kinds if homeless}
    with temporary_environment({name: path for name, path in elsewhere.items() if name not in os.environ}):
        try:
            yield
        finally:
            os.environ.update(aside)


def _within(seconds: float, action: Callable[[], Mirrored]) -> Mirrored:
    """Run in a daemon thread, so that a W&B call that never returns cannot hold up the sweep.

    An executor's threads are not daemons: Python would wait for them at exit.
    """
    outcome: Future[Mirrored] = Future()

    def work() -> None:
        try:
            outcome.set_result(action())
        except BaseException as error:
            outcome.set_exception(error)

    threading.Thread(target=work, name="wandb-mirror", daemon=True).start()
    try:
        return outcome.result(seconds)
    except TimeoutError:
        if outcome.done():  # the action itself raised it
            raise
        raise TimeoutError(f"no answer within {seconds:.0f} s") from None


def _write(run: RunData, store: Store, planned: Sequence[PlannedRun], folder: Path, drawn: Drawn | None) -> Mirrored:
    """Write the runs that are not in the folder with their current content."""
    marker = Marker(folder)
    todo = [p for p in planned if not marker.has(p.id, p.digest)]
    summary_id, summary_content = run.wandb_id("summary"), summary_digest(run)
    summarise = not marker.has(summary_id, summary_content)
    written = len(todo) + summarise
    if written:
        folder.mkdir(parents=True, exist_ok=True)
        writer = Writer(run, folder)
        for number, p in enumerate(todo, 1):
            marker.put(p.id, p.digest, writer.write(p))
            if number % SAVED_EVERY == 0:
                marker.save()
        if summarise:
            drawn = drawn or build.draw(run, store)
            marker.put(summary_id, summary_content, writer.summarise(summary_id, drawn, store))
        marker.save()
    return Mirrored(written, len(planned) + 1 - written)


class Marker:
    """The file that records which content of which run is in the folder, and which of it was sent."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.path = folder / MARKER
        self.runs: dict[str, dict[str, str]] = {}
        with suppress(FileNotFoundError, ValueError, KeyError, TypeError):  # none, or damaged: all is written again
            self.runs = dict(json.loads(self.path.read_text())["runs"])

    def has(self, run_id: str, content: str) -> bool:
        """Whether the run is there with this content, including its directory."""
        entry = self.runs.get(run_id)
        return bool(entry and entry["content"] == content and self.directory(run_id).is_dir())

    def directory(self, run_id: str) -> Path:
        """The run's directory."""
        return self.folder / self.runs[run_id]["directory"]

    def put(self, run_id: str, content: str, directory: Path) -> None:
        """Record a run that was just written."""
        self.runs[run_id] = {"content": content, "directory": directory.name, "sent": ""}

    def drivers(self) -> list[str]:
        """The runs that showed a sweep while it worked and could not be live on a server."""
        return [i for i, entry in self.runs.items() if entry["content"] == DRIVER and self.has(i, DRIVER)]

    def unsent(self, ids: Sequence[str]) -> list[str]:
        """The runs whose current content was not sent to the current server."""
        return [i for i in ids if self.runs[i]["sent"] not in self._as_sent(i)]

    def mark_sent(self, ids: Sequence[str]) -> None:
        """Record that the current content of these runs was sent to the current server."""
        for run_id in ids:
            self.runs[run_id]["sent"] = self._as_sent(run_id)[0]
        self.save()

    def _as_sent(self, run_id: str) -> tuple[str, ...]:
        """How a run that was sent is recorded: the content, which includes project and entity, and the server."""
        content = self.runs[run_id]["content"]
        return f"{content} {server()}", *([content] if "WANDB_BASE_URL" not in os.environ else [])

    def save(self) -> None:
        """Replace the marker file atomically."""
        partial = self.path.with_suffix(".partial")
        partial.write_text(json.dumps({"runs": self.runs}, indent=1, sort_keys=True))
        os.replace(partial, self.path)


class Writer:
    """Writes offline runs into a folder."""

    def __init__(self, run: RunData, folder: Path) -> None:
        import wandb

        self.wandb, self.run, self.folder = wandb, run, folder
        self._earlier: dict[str, list[Path]] = defaultdict(list)
        """Directories of runs by id: the folder is listed once, not for each of hundreds of runs."""
        for path in folder.glob("offline-run-*"):
            self._earlier[path.name.rpartition("-")[2]].append(path)

    def write(self, planned: PlannedRun) -> Path:
        """Write one probe run and return its directory."""
        run = self.open(planned.id, planned.name, planned.job_type, planned.tags, planned.config)
        try:
            run.define_metric(planned.axis)
            if planned.epochs:
                run.define_metric(EPOCH, summary="none")
                run.define_metric(f"{CURVES}/*", step_metric=EPOCH, summary="none")
            # One pattern for each metric: of several that fit, W&B takes any.
            names = {name for row in planned.history for name in row} - {planned.axis}
            for pattern in sorted({f"{name.partition('/')[0]}/*" if "/" in name else name for name in names}):
                run.define_metric(pattern, step_metric=planned.axis)
            for name, best in planned.best.items():
                run.define_metric(name, step_metric=planned.axis, summary=f"{best},last")
            for row in (*planned.history, *planned.epochs):
                run.log(row)
            run.summary.update(planned.summary)
        finally:
            run.finish()
        return Path(run.dir).parent

    def summarise(self, run_id: str, drawn: Drawn, store: Store) -> Path:
        """Write the summary run (tables, figures, examples, reference to the store) and return its directory."""
        config = {"sweep": self.run.config, "manifest": self.run.manifest, "cluster": self.run.cluster}
        config |= self.run.addresses
        run = self.open(run_id, f"{self.run.name} summary", "summary", ("summary",), config)
        try:
            summary.fill(run, drawn, store)
        finally:
            run.finish()
        return Path(run.dir).parent

    def open(
        self,
        run_id: str,
        name: str,
        job_type: str,
        tags: Sequence[str],
        config: Json,
        mode: Literal["offline", "online"] = "offline",
    ) -> wandb.Run:
        """A new W&B run of the sweep's group; an offline one replaces the run of the same id in the folder."""
        for old in self._earlier.pop(run_id, ()):
            shutil.rmtree(old)
        return self.wandb.init(
            id=run_id,
            name=name,
            project=self.run.setting("tracking.project") or "scenesweep",
            entity=self.run.setting("tracking.entity") or None,
            group=self.run.group,
            job_type=job_type,
            tags=list(tags),
            config=config,
            dir=str(self.folder.parent),
            mode=mode,
            reinit="create_new",
            # New settings for each run, because `wandb.init` writes into them.
            settings=self.wandb.Settings(
                x_disable_stats=True,
                x_disable_meta=True,
                x_disable_machine_info=True,
                x_save_requirements=False,
                disable_git=True,
                save_code=False,
                console="off",
                silent=True,
                symlink=False,
                init_timeout=30,
            ),
        )

    def directory(self, run_id: str) -> Path:
        found = sorted(self.folder.glob(f"offline-run-*-{run_id}"))
        assert found, f"W&B wrote no offline run {run_id} into {self.folder}"
        return found[-1]


def send(marker: Marker, ids: Sequence[str], limit_s: float) -> int:
    """Send runs with `wandb sync` and return their number. Runs that fail are sent by the next call.

    Raises TimeoutError after `limit_s` seconds, ConnectionError if `wandb sync` gives up.
    """
    unsent = marker.unsent(ids)
    if not unsent:
        return 0
    later = f"send later with: wandb sync --yes {marker.folder}/offline-run-*"
    command = [sys.executable, *SYNC, *(str(marker.directory(i)) for i in unsent)]
    with tempfile.TemporaryFile("w+") as out:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True)
        try:
            code = process.wait(limit_s)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)  # the group, because `wandb sync` starts children
            process.wait()
            raise TimeoutError(f"the server did not take the runs in {limit_s:.0f} s; {later}") from None
        out.seek(0)
        last_line = (out.read().strip().splitlines() or ["no message"])[-1]
    if code:
        raise ConnectionError(f"{last_line}; {later}")
    marker.mark_sent(unsent)
    return len(unsent)
