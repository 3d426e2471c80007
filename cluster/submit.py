"""Runs as jobs of a Ray cluster, through Ray's Jobs API: submit, follow, stop, resume."""

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
from storage.backends import without_slash

if TYPE_CHECKING:
    from ray.job_submission import JobDetails, JobSubmissionClient

PROJECT = "scenesweep"
"""Marks the jobs of this project in their metadata."""

PACKAGE_BYTES = 400 * 2**20
"""Maximum size of a job's code; Ray's own limit is 512 MiB."""

AGENT_S = 180.0
"""Seconds to wait for the job agent of a cluster that has just started."""

ANSWER_S = 60.0
"""Seconds that the dashboard may take to answer a request."""

NO_AGENT = "No available agent"
"""Start of Ray's message while the agent is not ready."""

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
    """Ray's explanation of the status."""
    arguments: tuple[str, ...]
    """Arguments of `scenesweep run`."""
    output: str
    """URL of the output, as given at submission."""
    dashboard: str
    """URL of the job's page."""

    @property
    def ended(self) -> bool:
        return self.status in ("STOPPED", "SUCCEEDED", "FAILED")


def submit(address: str, arguments: Sequence[str], *, output: str = "", home: Path | None = None) -> Job:
    """Submit `python -m sweeps run ARGUMENTS` and return without waiting for its end.

    The five packages travel as `py_modules`; everything else comes from the cluster's image.
    Submitting the same run again resumes it.

    Args:
        address: URL of the cluster's dashboard, http://HOST:8265.
        arguments: preset or file on the cluster, and key=value settings.
        output: URL of the output, stored with the job so that `find` can look it up.
        home: the folder that holds the packages; None: the one this module was imported from.

    Raises ValueError if a job of this output has not ended, no dashboard answers, the Ray version differs,
    an argument looks like a secret, or the packages are too large to upload.
    """
    check_no_secrets([*arguments, output])
    for job in jobs(address, output) if output else ():
        if not job.ended:
            raise ValueError(f"job {job.id} of {output} is {job.status}: stop it first, or let it finish")
    packages = [(home or Path(__file__).resolve().parent.parent) / name for name in OURS]
    check_packages(packages)
    metadata = {"project": PROJECT, "arguments": json.dumps(list(arguments)), "output": output}
    runtime_env = {
        "py_modules": [str(package) for package in packages],
        "excludes": EXCLUDES,
        # PYTHONSAFEPATH: a copy of the packages in the head's working directory must not take precedence.
        "env_vars": {SUBMITTED_FROM: json.dumps(versions()), "PYTHONSAFEPATH": "1"},
    }
    deadline = time.monotonic() + AGENT_S
    while True:
        try:
            with _client(address) as client:
                job_id = f"sweep-{datetime.datetime.now(datetime.UTC):%Y%m%d-%H%M%S}-{secrets.token_hex(2)}"
                client.submit_job(
                    entrypoint=entry_point(arguments), submission_id=job_id, runtime_env=runtime_env, metadata=metadata
                )
                return _job(address, client.get_job_info(job_id))
        except ValueError as error:
            if NO_AGENT not in str(error) or time.monotonic() > deadline:
                raise
        time.sleep(1)


def entry_point(arguments: Sequence[str]) -> str:
    """The shell command of a job."""
    return shlex.join(["python", "-m", "sweeps", "run", *arguments, "ray.address=auto"])


def status(address: str, job: str) -> Job:
    """The current state of a job. Raises ValueError if the cluster does not know it."""
    with _client(address) as client:
        return _job(address, client.get_job_info(job))


def jobs(address: str, output: str | None = None) -> list[Job]:
    """The jobs of this project on a cluster, those that have not ended first, then newest first.

    Only those of `output` if it is given; OUT/ is the same as OUT.
    """
    with _client(address) as client:
        infos = sorted(client.list_jobs(), key=lambda info: info.start_time or 0, reverse=True)
    # Jobs that were not submitted through the Jobs API have no id.
    own = [info for info in infos if info.submission_id and (info.metadata or {}).get("project") == PROJECT]
    found = sorted((_job(address, info) for info in own), key=lambda job: job.ended)
    return [job for job in found if output is None or without_slash(job.output) == without_slash(output)]


def find(address: str, target: str) -> Job:
    """A job by its id, or that of an output by its URL: the one that has not ended, else the newest.

    Raises ValueError if there is none.
    """
    known = jobs(address)
    for job in known:
        if target == job.id or without_slash(target) == without_slash(job.output):
            return job
    ids = ", ".join(job.id for job in known[:5]) or "none"
    raise ValueError(f"{target}: neither a job nor the output of a job at {address}; newest jobs: {ids}")


def logs(address: str, job: str) -> str:
    """The log of a job so far."""
    with _client(address) as client:
        return client.get_job_logs(job)


def follow(address: str, job: str, write: Callable[[str], object]) -> Job:
    """Pass a job's log to `write` as it grows until the job ends, and return its final state."""

    async def tail(client: JobSubmissionClient) -> None:
        async for lines in client.tail_job_logs(job):
            write(lines)

    with _client(address) as client:
        asyncio.run(tail(client))
        return _job(address, client.get_job_info(job))


def stop(address: str, job: str) -> bool:
    """Stop a job (SIGTERM, later SIGKILL); return False if it had already ended."""
    with _client(address) as client:
        return client.stop_job(job)


def resume(address: str, job: str, *, home: Path | None = None) -> Job:
    """Submit a job's run again. Raises ValueError if the job has not ended."""
    before = status(address, job)
    if not before.ended:
        raise ValueError(f"job {job} is {before.status}: stop it first, or let it finish")
    return submit(address, before.arguments, output=before.output, home=home)


def check_no_secrets(arguments: Sequence[str]) -> None:
    """Raise ValueError if an argument looks like a secret or contains one from the environment.

    Arguments are visible in the dashboard and in logs. The message names the setting, never its value.
    """
    # Values shorter than 8 characters, such as "on", occur in harmless arguments.
    values = [value for name, value in os.environ.items() if SECRET_VARIABLES.search(name) and len(value) >= 8]
    for argument in arguments:
        name, equals, value = argument.partition("=")
        secret = (
            (equals and value and SECRET_SETTINGS.search(name))
            or CREDENTIALS_IN_URL.search(argument)
            or any(value in argument for value in values)
        )
        if secret:
            setting = name if equals else "an argument"
            raise ValueError(
                f"{setting}: secrets do not belong in a job's arguments, which the dashboard shows; "
                "pass them to the cluster's nodes as environment variables"
            )


def check_packages(packages: Sequence[Path]) -> None:
    """Raise ValueError if a package is missing or the code is too large to be uploaded."""
    for package in packages:
        if not package.is_dir():
            raise ValueError(f"package {package.name} is not at {package}; submit from a full copy")
    files = [path for package in packages for path in package.rglob("*") if path.is_file()]
    sizes = {path: path.stat().st_size for path in files if "__pycache__" not in path.parts}
    total = sum(sizes.values())
    if total > PACKAGE_BYTES:
        largest = max(sizes, key=lambda path: sizes[path])
        raise ValueError(
            f"the packages have {total / 2**20:.0f} MiB, at most {PACKAGE_BYTES / 2**20:.0f} can "
            f"be submitted; the largest file is {largest}: data belong in the output"
        )


@contextmanager
def _client(address: str) -> Iterator[JobSubmissionClient]:
    """A client of the Jobs API, whose errors become ValueErrors of one line; no request waits longer than ANSWER_S."""
    import aiohttp
    import requests
    from ray.exceptions import RayError
    from ray.job_submission import JobSubmissionClient

    class Client(JobSubmissionClient):
        # Ray sets no limit, so a dashboard that takes a connection and never answers would hold the caller for ever.
        def _do_request(self, *args: Any, **options: Any) -> requests.Response:
            return super()._do_request(*args, **{"timeout": ANSWER_S} | options)

    if not address.startswith(("http://", "https://")):
        raise ValueError(f"address: {address} is not the URL of a dashboard; give http://HOST:8265")
    try:
        client = Client(address)
        reply = client._do_request("GET", "/api/version")  # no public method returns Ray's version
        check_versions({"ray": reply.json()["ray_version"]}, address)
        yield client
    except requests.Timeout as error:
        raise ValueError(f"the dashboard at {address} did not answer within {ANSWER_S:.0f} s") from error
    except (requests.JSONDecodeError, KeyError, TypeError) as error:
        raise ValueError(f"what answers at {address} is no Ray dashboard; give http://HOST:8265") from error
    except (OSError, aiohttp.ClientError) as error:
        raise ValueError(f"no Ray dashboard answers at {address}: {_first_line(error)}") from error
    except RayError as error:  # a token that is missing or wrong
        raise ValueError(f"the cluster at {address} refuses: {_first_line(error)}") from error
    except RuntimeError as error:
        raise ValueError(f"the cluster at {address} refuses: {_first_line(error)}") from error


def _job(address: str, info: JobDetails) -> Job:
    metadata = info.metadata or {}
    return Job(
        id=info.submission_id or "",
        status=info.status.value,
        message=info.message or "",
        arguments=tuple(json.loads(metadata.get("arguments", "[]"))),
        output=metadata.get("output", ""),
        dashboard=f"{address.rstrip('/')}/#/jobs/{info.submission_id}",
    )


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:300]
