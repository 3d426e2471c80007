"""A run as a job of a Ray cluster, through Ray's Jobs API: submit, watch, stop, resume."""

from __future__ import annotations

import asyncio
import datetime
import json
import os
import re
import secrets
import shlex
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cluster.versions import SUBMITTED_FROM, check_versions, versions
from cluster.workers import OURS

if TYPE_CHECKING:
    from ray.job_submission import JobSubmissionClient

PACKAGE_BYTES = 400 * 2**20
"""Most that the code of a job may weigh; Ray's own limit is 512 MiB."""

AGENT_S = 180.0
"""How long a cluster may take until its job agent is up."""

NO_AGENT = "No available agent"
"""What Ray says before that."""

EXCLUDES = ["**/__pycache__", "**/*.pyc", "**/*.partial"]

SECRET_VARIABLES = re.compile(r"(^|_)(KEY|TOKEN|SECRET|PASSWORD|PASSPHRASE|CREDENTIALS)($|_)")
SECRET_SETTINGS = re.compile(r"(^|[._-])(\w*key|token|secret|password|passphrase)$", re.IGNORECASE)
CREDENTIALS_IN_URL = re.compile(r"\w+://[^/@\s]*:[^/@\s]*@")


@dataclass(frozen=True)
class Job:
    """A submitted run."""

    id: str
    status: str
    """PENDING, RUNNING, STOPPED, SUCCEEDED or FAILED."""
    message: str
    """What Ray says of the status."""
    arguments: tuple[str, ...]
    """Of `scenesweep run`."""
    output: str
    """URL of the output, as told at submission."""
    dashboard: str
    """Where a browser finds it."""

    @property
    def ended(self) -> bool:
        return self.status in ("STOPPED", "SUCCEEDED", "FAILED")


def submit(address: str, arguments: Sequence[str], *, output: str = "", home: Path | None = None) -> Job:
    """Submit `python -m sweeps run ARGUMENTS` and return without waiting for it.

    The five packages travel as `py_modules`; everything else comes from the cluster's image.
    Submitting the same run again resumes it.

    Args:
        address: of the cluster's dashboard, http://HOST:8265.
        arguments: preset or file on the cluster, and key=value settings.
        output: URL of the output, kept with the job so that it can be found by it.
        home: the folder that holds the packages; None: where this one lies.

    Raises:
        ValueError: nothing answers, another Ray version, a secret among the arguments, too much
            to upload.
    """
    check_no_secrets([*arguments, output])
    packages = [(home or Path(__file__).resolve().parent.parent) / name for name in OURS]
    check_packages(packages)
    request = {
        "entrypoint": entry_point(arguments),
        "runtime_env": {
            "py_modules": [str(package) for package in packages],
            "excludes": EXCLUDES,
            # A copy of the packages in the head's working directory must not win over these.
            "env_vars": {SUBMITTED_FROM: json.dumps(versions()), "PYTHONSAFEPATH": "1"},
        },
        "metadata": {"project": "scenesweep", "arguments": json.dumps(list(arguments)), "output": output},
    }
    return _sent(address, request)


def _sent(address: str, request: dict[str, Any]) -> Job:
    """Send a job; a cluster that has just started is given time until its job agent answers."""
    patience = time.monotonic() + AGENT_S
    while True:
        try:
            with _client(address) as client:
                job = client.submit_job(submission_id=_new_id(), **request)
                return _job(address, client.get_job_info(job))
        except ValueError as error:
            if NO_AGENT not in str(error) or time.monotonic() > patience:
                raise
        time.sleep(1)


def entry_point(arguments: Sequence[str]) -> str:
    """The shell command of a job."""
    return shlex.join(["python", "-m", "sweeps", "run", *arguments, "ray.address=auto"])


def status(address: str, job: str) -> Job:
    """The present state of a job; ValueError if the cluster does not know it."""
    with _client(address) as client:
        return _job(address, client.get_job_info(job))


def jobs(address: str, output: str | None = None) -> list[Job]:
    """Our jobs on a cluster, newest first; only those of one output where it is given."""
    with _client(address) as client:
        known = [info for info in client.list_jobs() if _is_ours(info)]
    known.sort(key=lambda info: info.start_time or 0, reverse=True)
    found = [_job(address, info) for info in known]
    return [job for job in found if output is None or job.output == output]


def find(address: str, target: str) -> Job:
    """A job by its id, or the newest of an output by its URL; ValueError if there is none."""
    known = jobs(address)
    for job in known:
        if target in (job.id, job.output):
            return job
    ids = ", ".join(job.id for job in known[:5]) or "it has none"
    raise ValueError(f"{target}: neither a job nor an output of one at {address}; its newest: {ids}")


def logs(address: str, job: str) -> str:
    """What a job has written so far."""
    with _client(address) as client:
        return client.get_job_logs(job)


def follow(address: str, job: str, write: Callable[[str], Any]) -> Job:
    """Pass on what a job writes until it ends, and return how it ended."""

    async def tail(client: JobSubmissionClient) -> None:
        async for lines in client.tail_job_logs(job):
            write(lines)

    with _client(address) as client:
        asyncio.run(tail(client))
        return _job(address, client.get_job_info(job))


def stop(address: str, job: str) -> bool:
    """Ask a job to end (SIGTERM, later SIGKILL); False if it had ended already."""
    with _client(address) as client:
        return client.stop_job(job)


def resume(address: str, job: str, *, home: Path | None = None) -> Job:
    """Submit a job's run again; ValueError while it is still running."""
    before = status(address, job)
    if not before.ended:
        raise ValueError(f"job {job} is {before.status}: stop it first, or let it go on")
    return submit(address, before.arguments, output=before.output, home=home)


def check_no_secrets(arguments: Sequence[str]) -> None:
    """Raise ValueError where an argument looks like, or contains, a secret.

    Arguments show in the dashboard and in logs. The message names the setting, never its value.
    """
    values = [value for name, value in os.environ.items() if SECRET_VARIABLES.search(name) and len(value) >= 8]
    for argument in arguments:
        name, equals, value = argument.partition("=")
        secret = (
            (equals and value and SECRET_SETTINGS.search(name))
            or CREDENTIALS_IN_URL.search(argument)
            or any(value in argument for value in values)
        )
        if secret:
            told = name if equals else "an argument"
            raise ValueError(
                f"{told}: secrets do not belong into a job's arguments, which the dashboard shows; "
                "give them to the cluster's nodes as environment variables"
            )


def check_packages(packages: Sequence[Path]) -> None:
    """Raise ValueError where a package is missing or the code weighs too much to be uploaded."""
    for package in packages:
        if not package.is_dir():
            raise ValueError(f"package {package.name} is not at {package}; submit from a full copy")
    sizes = {
        path: path.stat().st_size
        for package in packages
        for path in package.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    total = sum(sizes.values())
    if total > PACKAGE_BYTES:
        largest = max(sizes, key=lambda path: sizes[path])
        raise ValueError(
            f"the packages weigh {total / 2**20:.0f} MiB, at most {PACKAGE_BYTES / 2**20:.0f} can "
            f"be submitted; the largest file is {largest}: data belong into the output"
        )


@contextmanager
def _client(address: str) -> Iterator[JobSubmissionClient]:
    """A client whose every complaint is a ValueError of one line."""
    from ray.job_submission import JobSubmissionClient

    if not address.startswith(("http://", "https://")):
        raise ValueError(f"address: {address} is not a dashboard's; give http://HOST:8265")
    try:
        client = JobSubmissionClient(address)
        _check_ray(client, address)
        yield client
    except ConnectionError as error:
        raise ValueError(f"no Ray dashboard answers at {address}: {_first_line(error)}") from error
    except RuntimeError as error:
        raise ValueError(f"the cluster at {address} says: {_first_line(error)}") from error


def _check_ray(client: JobSubmissionClient, address: str) -> None:
    answer = client._do_request("GET", "/api/version")  # no public call tells Ray's version
    check_versions({"ray": answer.json()["ray_version"]}, address)


def _job(address: str, info: Any) -> Job:
    metadata = info.metadata or {}
    return Job(
        id=info.submission_id,
        status=str(getattr(info.status, "value", info.status)),
        message=info.message or "",
        arguments=tuple(json.loads(metadata.get("arguments", "[]"))),
        output=metadata.get("output", ""),
        dashboard=f"{address.rstrip('/')}/#/jobs/{info.submission_id}",
    )


def _is_ours(info: Any) -> bool:
    return bool(info.submission_id) and (info.metadata or {}).get("project") == "scenesweep"


def _new_id() -> str:
    now = datetime.datetime.now(datetime.UTC)
    return f"sweep-{now:%Y%m%d-%H%M%S}-{secrets.token_hex(2)}"


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:300]
