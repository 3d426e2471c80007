"""Errors of a dashboard are one line each, and a job is found by its output."""

from __future__ import annotations

import http.server
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest

from cluster import submit

Answer = Callable[[http.server.BaseHTTPRequestHandler], None]


@contextmanager
def serving(answer: Answer) -> Iterator[str]:
    """The address of a server on this machine that answers every request in one way."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            answer(self)

        do_POST = do_PUT = do_GET

        def log_message(self, *_: Any) -> None:
            """Quiet."""

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def status(code: int, body: bytes = b"") -> Answer:
    def answer(handler: http.server.BaseHTTPRequestHandler) -> None:
        handler.send_response(code)
        handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        handler.wfile.write(body)

    return answer


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (status(500, b"a page\nof many lines"), "no Ray dashboard answers at .*: 500"),
        (status(200, b"<html>"), "what answers at .* is no Ray dashboard"),
        (status(200, b'{"version": 1}'), "what answers at .* is no Ray dashboard"),
        (status(401, b"Unauthorized"), "the cluster at .* refuses: "),
        (status(403, b"Forbidden"), "the cluster at .* refuses: "),
        (lambda handler: time.sleep(3), "did not answer within 1 s"),
    ],
)
def test_a_dashboard_in_trouble_is_one_line(answer: Answer, reason: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(submit, "ANSWER_S", 0.7)
    with serving(answer) as address, pytest.raises(ValueError, match=reason) as refused:
        submit.jobs(address)
    assert "\n" not in str(refused.value)


def info(name: str, state: str, start: int, output: str) -> SimpleNamespace:
    metadata = {"project": submit.PROJECT, "arguments": "[]", "output": output}
    return SimpleNamespace(
        submission_id=name, status=SimpleNamespace(value=state), message="", metadata=metadata, start_time=start
    )


@pytest.fixture
def two_jobs(monkeypatch: pytest.MonkeyPatch) -> None:
    """A cluster on which the older job of an output still runs, and the newer one was refused."""
    known = [info("new", "FAILED", 2, "s3://b/run"), info("old", "RUNNING", 1, "s3://b/run/")]

    @contextmanager
    def client(address: str) -> Iterator[SimpleNamespace]:
        yield SimpleNamespace(list_jobs=lambda: known)

    monkeypatch.setattr(submit, "_client", client)


@pytest.mark.parametrize("output", ["s3://b/run", "s3://b/run/"])
def test_an_output_means_its_living_job(output: str, two_jobs: None) -> None:
    assert submit.find("http://head", output).id == "old"
    assert [job.id for job in submit.jobs("http://head", output)] == ["old", "new"]
    assert submit.find("http://head", "new").id == "new"


def test_a_second_job_of_an_output_is_refused_while_one_lives(two_jobs: None) -> None:
    with pytest.raises(ValueError, match="job old of s3://b/run is RUNNING: stop it first, or let it finish"):
        submit.submit("http://head", ["scenes"], output="s3://b/run")
