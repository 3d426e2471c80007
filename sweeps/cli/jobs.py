"""Verbs for runs on a Ray cluster, from a machine outside it: submit, status, logs, stop, resume."""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from cluster import submit as jobs
from cluster.observers import logs as records

if TYPE_CHECKING:
    from sweeps.config.schema import Config

log = logging.getLogger(__name__)


def submit(parsed: argparse.Namespace) -> int:
    """Submits the run as a Ray job; the same command resumes it."""
    from sweeps.config.load import load

    made = load(parsed.preset, parsed.overrides)
    check(made, parsed.address)
    job = jobs.submit(parsed.address, arguments(parsed.preset, parsed.overrides), output=made.output)
    print(f"job {job.id}\ndashboard {job.dashboard}\noutput {job.output}\nW&B {tracked(made)}")
    return _followed(parsed, job) if parsed.follow else 0


def check(made: Config, address: str) -> None:
    """Raises ValueError where interventions need probes that the sweep does not plan, as far as this machine can tell.

    It can't where the model's configuration is elsewhere, or where an earlier job of the same output, which need not be
    in sight from here, may have fitted them: the job itself then tells.
    """
    from sweeps.planning import requirements
    from sweeps.runtime import run

    found = run.local_model_info(made)
    if found is None:
        return
    try:
        requirements.check(made, found)
    except ValueError:
        if not jobs.jobs(address, made.output):
            raise
    except Exception as error:  # an output that can't be read from here; readers of object stores raise many kinds
        log.debug("probes of %s not looked for from here: %s", made.output, error)


def status(parsed: argparse.Namespace) -> int:
    """Prints how a job is, found by its id or its output; 1 where it failed."""
    job = jobs.find(parsed.address, parsed.output)
    print(f"job {job.id} {job.status}: {job.message}\ndashboard {job.dashboard}\noutput {job.output}")
    return 1 if job.status == "FAILED" else 0


def logs(parsed: argparse.Namespace) -> int:
    """Prints what a job has written; with --json its records instead of the lines for people."""
    job = jobs.find(parsed.address, parsed.output)
    if parsed.follow:
        return _followed(parsed, job)
    lines = jobs.logs(parsed.address, job.id).splitlines()
    for line in filter(records.is_record, lines) if parsed.json else records.readable(lines):
        print(line)
    return 0


def stop(parsed: argparse.Namespace) -> int:
    """Asks a job to end; what is finished stays, `resume` carries on."""
    job = jobs.find(parsed.address, parsed.output)
    asked = jobs.stop(parsed.address, job.id)
    print(f"job {job.id} {'is asked to stop' if asked else f'has ended already: {job.status}'}")
    return 0


def resume(parsed: argparse.Namespace) -> int:
    """Submits the run of a job that has ended once more."""
    before = jobs.find(parsed.address, parsed.output)
    job = jobs.resume(parsed.address, before.id)
    print(f"job {job.id}\ndashboard {job.dashboard}\noutput {job.output}")
    return _followed(parsed, job) if parsed.follow else 0


def _followed(parsed: argparse.Namespace, job: jobs.Job) -> int:
    def write(text: str) -> None:
        for line in records.readable(text.splitlines()):
            print(line, flush=True)

    ended = jobs.follow(parsed.address, job.id, write)
    if ended.status != "SUCCEEDED":
        print(f"job {ended.id} {ended.status}: {ended.message}", file=sys.stderr)
    return 0 if ended.status == "SUCCEEDED" else 1


def arguments(preset: str, overrides: Sequence[str]) -> list[str]:
    """What a job is started with: a preset by its name; a file, which the cluster may not have, by its settings."""
    from sweeps.config.load import load, presets, to_dict

    if preset in presets():
        return [preset, *overrides]
    base, wanted = (to_dict(load(*words)) for words in (("scenes", []), (preset, overrides)))
    return ["scenes", *_differences(base, wanted)]


def _differences(base: Mapping[str, Any], wanted: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """key=value, the value as YAML, of each leaf that differs."""
    for key, value in wanted.items():
        if isinstance(value, Mapping) and value:
            yield from _differences(base.get(key, {}), value, f"{prefix}{key}.")
        elif value != base.get(key):
            yield f"{prefix}{key}={json.dumps(value)}"


def tracked(made: Config) -> str:
    """Where the run's mirror is to be found."""
    told = made.tracking
    if told.mode == "disabled":
        return "disabled"
    if told.mode == "offline":
        return f"offline, in {made.output}/wandb"
    server = os.environ.get("WANDB_BASE_URL", "https://wandb.ai").replace("https://api.", "https://").rstrip("/")
    if not told.entity:
        return f"{server}, project {told.project}, group {made.name}"
    return f"{server}/{told.entity}/{told.project}/groups/{made.name}"
