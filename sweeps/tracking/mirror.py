"""W&B mirror of a sweep, written by the driver from the results tables.

    mirrored = tracking.mirror(store, config, mode="offline", runs="site")

The tables are the truth: a mirror can be deleted and made again. Runs are always written as
offline files; `mode="online"` then sends them with `wandb sync` in a process of its own, so a
server that is slow, limits rates or cannot be reached loses nothing and holds up nothing.
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
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any

from sweeps.analysis import tables
from sweeps.analysis.tables import RunData
from sweeps.report import build
from sweeps.report.build import Drawn
from sweeps.tracking import summary
from sweeps.tracking.runs import CURVES, EPOCH, PlannedRun, plan, summary_digest

MODES = ("offline", "online", "disabled")
MARKER = "mirror.json"
LIMIT_S = 300.0
SYNC = ("-m", "wandb", "sync", "--yes", "-n", "2")
"""arguments of the Python that sends runs, two at a time"""
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Mirrored:
    """What a mirroring did."""

    written: int = 0
    """runs written now"""
    kept: int = 0
    """runs that were there with the same content"""
    sent: int = 0
    """runs sent to the server now"""
    problem: str = ""
    """why the mirror is incomplete; empty where it is whole"""


def mirror(
    store: Any,
    config: dict[str, Any],
    mode: str = "offline",
    runs: str = "site",
    limit_s: float = LIMIT_S,
    drawn: Drawn | None = None,
) -> Mirrored:
    """Write one W&B run per (variant, site), or per probe with `runs="cell"`, and a summary run.

    The summary run shows the figures of the report: of `drawn`, where it was drawn already.
    Runs whose content is mirrored already are left alone. Any trouble with W&B, also one that
    lasts longer than `limit_s` seconds, becomes one warning line and `Mirrored.problem`; nothing
    is raised but ValueError for an unknown `mode` or `runs`.
    """
    if mode not in MODES:
        raise ValueError(f"tracking.mode={mode!r}: expected one of {', '.join(MODES)}")
    if mode == "disabled":
        return Mirrored()
    run = drawn.context.run if drawn else tables.load(store, config)
    planned = plan(run, runs)
    folder = local_folder(store.url, run)
    done = Mirrored()
    try:
        done = _within(limit_s, lambda: _write(run, store, planned, folder, drawn))
        if mode == "online":
            ids = [p.id for p in planned] + [run.wandb_id("summary")]
            done = replace(done, sent=send(Marker(folder), ids, limit_s))
    except Exception as error:  # W&B is a mirror: nothing it does may stop a sweep
        problem = " ".join(f"{type(error).__name__}: {error}".split())
        log.warning("W&B mirror incomplete, results are safe in the tables: %s", problem)
        done = replace(done, problem=problem)
    return done


def local_folder(url: str, run: RunData) -> Path:
    """Where offline runs go: OUT/wandb, or ./wandb for a store on an object store."""
    chosen = run.setting("tracking.dir")
    if chosen:
        return Path(chosen) / "wandb"
    plain = url.removeprefix("file://")
    return (Path.cwd() if "://" in plain else Path(plain)) / "wandb"


def _within(seconds: float, action: Callable[[], Mirrored]) -> Mirrored:
    """Run in a daemon thread, so that a W&B call that never returns cannot hold the sweep."""
    box: dict[str, Any] = {}

    def work() -> None:
        try:
            box["result"] = action()
        except BaseException as error:
            box["error"] = error

    thread = threading.Thread(target=work, name="wandb-mirror", daemon=True)
    thread.start()
    thread.join(seconds)
    if thread.is_alive():
        raise TimeoutError(f"no answer within {seconds:.0f} s")
    if "error" in box:
        raise box["error"]
    return box["result"]


def _write(run: RunData, store: Any, planned: Sequence[PlannedRun], folder: Path, drawn: Drawn | None) -> Mirrored:
    """Write the runs whose content the folder does not hold yet."""
    marker = Marker(folder)
    todo = [p for p in planned if not marker.has(p.id, p.digest)]
    summary_id, summary_content = run.wandb_id("summary"), summary_digest(run)
    summarise = not marker.has(summary_id, summary_content)
    written = len(todo) + summarise
    if written:
        folder.mkdir(parents=True, exist_ok=True)
        writer = Writer(run, folder)
        for p in todo:
            marker.put(p.id, p.digest, writer.write(p))
        if summarise:
            shown = drawn or build.draw(run, store)
            marker.put(summary_id, summary_content, writer.summarise(summary_id, shown, store))
        marker.save()
    return Mirrored(written, len(planned) + 1 - written)


class Marker:
    """Which content of which run is in the folder, and which of it was sent."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.path = folder / MARKER
        self.runs: dict[str, dict[str, str]] = {}
        if self.path.exists():
            self.runs = json.loads(self.path.read_text())["runs"]

    def has(self, run: str, content: str) -> bool:
        """Whether this content of the run is there, files included."""
        found = self.runs.get(run)
        return bool(found and found["content"] == content and self.place(run).is_dir())

    def place(self, run: str) -> Path:
        """The run's directory."""
        return self.folder / self.runs[run]["directory"]

    def put(self, run: str, content: str, directory: Path) -> None:
        """Note a run just written."""
        self.runs[run] = {"content": content, "directory": directory.name, "sent": ""}

    def unsent(self, ids: Sequence[str]) -> list[str]:
        """Those whose present content was not sent."""
        return [i for i in ids if self.runs[i]["sent"] != self.runs[i]["content"]]

    def sent(self, ids: Sequence[str]) -> None:
        """Note that the present content of these runs was sent."""
        for ident in ids:
            self.runs[ident]["sent"] = self.runs[ident]["content"]
        self.save()

    def save(self) -> None:
        """Replace the marker at once."""
        partial = self.path.with_suffix(".partial")
        partial.write_text(json.dumps({"runs": self.runs}, indent=1, sort_keys=True))
        os.replace(partial, self.path)


class Writer:
    """Writes offline runs into a folder."""

    def __init__(self, run: RunData, folder: Path) -> None:
        import wandb

        self.wandb, self.run, self.folder = wandb, run, folder

    def write(self, planned: PlannedRun) -> Path:
        """One probe run; returns its directory."""
        run = self._open(planned.id, planned.name, planned.job_type, planned.tags, planned.config)
        try:
            run.define_metric(planned.axis)
            run.define_metric("*", step_metric=planned.axis)
            if planned.epochs:
                run.define_metric(EPOCH)
                run.define_metric(f"{CURVES}/*", step_metric=EPOCH)
            for row in (*planned.history, *planned.epochs):
                run.log(row)
            run.summary.update(planned.summary)
        finally:
            run.finish()
        return self._directory(planned.id)

    def summarise(self, ident: str, drawn: Drawn, store: Any) -> Path:
        """The summary run with tables, figures, examples and a reference to the store."""
        config = {"sweep": self.run.config, "manifest": self.run.manifest, "cluster": self.run.cluster}
        run = self._open(ident, f"{self.run.name} summary", "summary", ("summary",), config)
        try:
            summary.fill(run, drawn, store)
        finally:
            run.finish()
        return self._directory(ident)

    def _open(self, ident: str, name: str, job_type: str, tags: Sequence[str], config: dict[str, Any]) -> Any:
        for old in self.folder.glob(f"offline-run-*-{ident}"):
            shutil.rmtree(old)
        return self.wandb.init(
            id=ident,
            name=name,
            project=self.run.setting("tracking.project") or "scenesweep",
            entity=self.run.setting("tracking.entity") or None,
            group=self.run.name,
            job_type=job_type,
            tags=list(tags),
            config=config,
            dir=str(self.folder.parent),
            mode="offline",
            reinit="create_new",
            settings=self._settings(),
        )

    def _settings(self) -> Any:
        """A fresh object for each run: `wandb.init` writes into the one it is given."""
        return self.wandb.Settings(
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
        )

    def _directory(self, ident: str) -> Path:
        found = sorted(self.folder.glob(f"offline-run-*-{ident}"))
        assert found, f"W&B wrote no offline run {ident} into {self.folder}"
        return found[-1]


def send(marker: Marker, ids: Sequence[str], limit_s: float) -> int:
    """Send runs with `wandb sync`, two at a time; how many. What fails stays for the next call.

    TimeoutError after `limit_s` seconds, ConnectionError where `wandb sync` gives up.
    """
    todo = marker.unsent(ids)
    if not todo:
        return 0
    later = f"send later with: wandb sync --yes {marker.folder}/offline-run-*"
    with tempfile.TemporaryFile("w+") as out:
        code = _run([sys.executable, *SYNC, *(str(marker.place(i)) for i in todo)], out, limit_s)
        out.seek(0)
        last = (out.read().strip().splitlines() or ["no message"])[-1]
    if code is None:
        raise TimeoutError(f"the server did not take the runs in {limit_s:.0f} s; {later}")
    if code:
        raise ConnectionError(f"{last}; {later}")
    marker.sent(todo)
    return len(todo)


def _run(command: Sequence[str], out: IO[str], limit_s: float) -> int | None:
    """Exit code of a command; None where it was stopped, with its children, at the limit."""
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True)
    try:
        return process.wait(limit_s)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        return None
