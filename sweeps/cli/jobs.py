"""The verbs for runs on a Ray cluster, from a machine outside it: submit, logs, stop, resume.

Each imports what it needs, as in `commands`.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from sweeps.cli.verbs import address, argument, dry_run, follow, job, settings, verb

if TYPE_CHECKING:
    from cluster.submit import Job
    from sweeps.config.schema import Config

log = logging.getLogger(__name__)


@verb(
    "cluster",
    "scenesweep submit --address http://HEAD:8265 paper output=s3://bucket/run",
    settings,
    address,
    follow,
    dry_run,
)
def submit(parsed: argparse.Namespace) -> int:
    """Submit the run as a job of a Ray cluster. The same command resumes it."""
    import cluster.submit
    from sweeps.config.load import load

    config = load(parsed.preset, parsed.overrides)
    check_output(config.output)
    if parsed.dry_run:
        from sweeps.planning import table

        print(table.describe(config))
        return 0
    check(config, parsed.address)
    words = arguments(parsed.preset, parsed.overrides)
    submitted = cluster.submit.submit(parsed.address, words, output=config.output)
    _show(submitted)
    print(f"W&B {tracked(config)}")
    return _follow(parsed.address, submitted) if parsed.follow else 0


@verb(
    "cluster",
    "scenesweep logs --address http://HEAD:8265 s3://bucket/run",
    job,
    address,
    follow,
    argument("--json", action="store_true", help="print only the structured records"),
)
def logs(parsed: argparse.Namespace) -> int:
    """Print the log of a job."""
    import cluster.submit
    from cluster.observers.logs import is_record, readable

    known = cluster.submit.find(parsed.address, parsed.output)
    if parsed.follow:
        return _follow(parsed.address, known)
    lines = cluster.submit.logs(parsed.address, known.id).splitlines()
    for line in filter(is_record, lines) if parsed.json else readable(lines):
        print(line)
    return 0


@verb("cluster", "scenesweep stop --address http://HEAD:8265 s3://bucket/run", job, address)
def stop(parsed: argparse.Namespace) -> int:
    """End a job; what is finished is kept."""
    import cluster.submit

    known = cluster.submit.find(parsed.address, parsed.output)
    stopping = cluster.submit.stop(parsed.address, known.id)
    print(f"job {known.id} {'is stopping' if stopping else f'has ended already: {known.status}'}")
    return 0


@verb("cluster", "scenesweep resume --address http://HEAD:8265 s3://bucket/run", job, address, follow)
def resume(parsed: argparse.Namespace) -> int:
    """Submit the run of an ended job again."""
    import cluster.submit

    ended = cluster.submit.find(parsed.address, parsed.output)
    submitted = cluster.submit.resume(parsed.address, ended.id)
    _show(submitted)
    return _follow(parsed.address, submitted) if parsed.follow else 0


def show_status(address: str, target: str) -> int:
    """Prints the status of a job, found by its id or its output; returns 1 if it failed."""
    import cluster.submit

    known = cluster.submit.find(address, target)
    print(f"job {known.id} {known.status}: {known.message}\ndashboard {known.dashboard}\noutput {known.output}")
    return 1 if known.status == "FAILED" else 0


def check_output(output: str) -> None:
    """Raises ValueError for an output that cannot be the same place on every node: a relative path, or memory."""
    from storage.backends import local_folder

    folder = local_folder(output)
    if output.startswith("memory:") or folder is not None and not folder.is_absolute():
        raise ValueError(
            f"output={output}: each node of a cluster would have its own; give an s3:// or gs:// URL, or the absolute "
            "path of a folder that all nodes share"
        )


def check(config: Config, address: str) -> None:
    """Raises ValueError if interventions need probes that the sweep does not plan.

    Checks nothing if the model's configuration is not on this machine, or if an earlier job of the same output may
    have fitted the probes, where this machine may not see them. The job itself checks again.
    """
    import cluster.submit
    from sweeps.planning import requirements
    from sweeps.runtime import run

    model = run.local_model_info(config)
    if model is None:
        return
    try:
        requirements.check(config, model)
    except ValueError:
        if not cluster.submit.jobs(address, config.output):
            raise
    except Exception as error:  # an output that can't be read from here; readers of object stores raise many kinds
        log.debug("probes of %s not checked from here: %s", config.output, error)


def arguments(preset: str, overrides: Sequence[str]) -> list[str]:
    """Arguments of the job: a preset by its name; a file, which the cluster may not have, by its settings."""
    from sweeps.config.load import load, presets, to_dict

    if preset in presets():
        return [preset, *overrides]
    base, requested = to_dict(load("scenes", [])), to_dict(load(preset, overrides))
    return ["scenes", *_differences(base, requested)]


def _differences(base: Mapping[str, object], requested: Mapping[str, object], prefix: str = "") -> Iterator[str]:
    """key=value of each setting that differs: text as it is, other values as JSON, which YAML contains."""
    for key, value in requested.items():
        group = base.get(key)
        if isinstance(value, Mapping) and isinstance(group, Mapping):
            yield from _differences(group, value, f"{prefix}{key}.")
        elif value != group:
            yield f"{prefix}{key}={value if isinstance(value, str) else json.dumps(value)}"


def tracked(config: Config) -> str:
    """Where to find the run in W&B."""
    from storage.backends import open_files
    from sweeps.runtime.layout import wandb_group, wandb_page

    tracking = config.tracking
    if tracking.mode == "disabled":
        return "disabled"
    if tracking.mode == "offline":
        if "://" in config.output:
            return "offline, in the folder wandb beside the job's driver; tracking.mode=online sends the runs"
        return f"offline, in {config.output}/wandb"
    return wandb_page(tracking.entity, tracking.project, wandb_group(config.name, open_files(config.output).url))


def _show(submitted: Job) -> None:
    print(f"job {submitted.id}\ndashboard {submitted.dashboard}\noutput {submitted.output}")


def _follow(address: str, running: Job) -> int:
    """Prints the log's lines for people until the job ends; returns 1 if it does not succeed."""
    import cluster.submit
    from cluster.observers.logs import readable

    def write(text: str) -> None:
        for line in readable(text.splitlines()):
            print(line, flush=True)

    options = f"--address {address} {running.id}"
    try:
        ended = cluster.submit.follow(address, running.id, write)
    except KeyboardInterrupt:
        print(f"\nno longer following; the job runs on: scenesweep logs {options} --follow", file=sys.stderr)
        return 1
    if ended.status == "SUCCEEDED":
        return 0
    print(f"job {ended.id} {ended.status}: {ended.message}", file=sys.stderr)
    print(f"resume with: scenesweep resume {options}", file=sys.stderr)
    return 1
