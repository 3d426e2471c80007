"""Errors of an object store are one line, and are errors of the world."""

from __future__ import annotations

import http.server
import socket
import threading
import time
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest

import storage
from storage.backends import objects
from storage.backends.objects import ObjectFiles, _reason
from storage.errors import Unavailable

NO_BUCKET = b"<?xml version='1.0'?><Error><Code>NoSuchBucket</Code><Message>The bucket does not exist</Message></Error>"
NO_KEY = NO_BUCKET.replace(b"NoSuchBucket", b"NoSuchKey")


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[int, bytes]]]:
    """A service whose every answer is the (status, body) in the list."""
    given: list[tuple[int, bytes]] = [(403, b"<Error><Code>AccessDenied</Code></Error>")]

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            code, body = given[0]
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            self.send_response(code)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_PUT = do_POST = do_GET

        def log_message(self, *_: Any) -> None:
            """Quiet."""

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.server_port}")
        monkeypatch.setenv("AWS_ALLOW_HTTP", "true")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret-key")
        for name in ("AWS_ACCESS_KEY_ID", "AWS_REGION"):
            monkeypatch.setenv(name, "x")
        yield given
        server.shutdown()


@pytest.mark.parametrize(
    ("code", "body", "reason"),
    [(403, b"", "access denied; give credentials"), (404, NO_BUCKET, "there is no such bucket"), (400, b"?", "400")],
)
def test_what_the_service_refuses_is_one_line(answers: list, code: int, body: bytes, reason: str) -> None:
    answers[:] = [(code, body)]
    files = ObjectFiles("s3://bucket/run")
    for act in (
        lambda: files.put("a", [b"1"]),
        lambda: files.create("a", b"1"),
        lambda: files.list(),
        lambda: storage.open("s3://bucket/run"),
    ):
        with pytest.raises(Unavailable, match=reason) as raised:
            act()
        line = str(raised.value)
        assert line.startswith("s3://bucket/run: ")
        assert "\n" not in line
        assert len(line) < 500
        assert "secret-key" not in line


def test_an_absent_file_stays_one(answers: list) -> None:
    answers[:] = [(404, NO_KEY)]
    with pytest.raises(FileNotFoundError):
        ObjectFiles("s3://bucket/run").get("a")
    with pytest.raises(ValueError, match="not a store"):
        storage.open("s3://bucket/run")


def test_absent_credentials_are_named() -> None:
    error = Exception(
        "Generic S3 error: Error performing PUT http://169.254.169.254/latest/api/token\n\nDebug source: x"
    )
    assert _reason(error).startswith("no credentials: set AWS_ACCESS_KEY_ID")


@pytest.mark.parametrize("url", ["s3://", "gs://"])
def test_a_url_without_a_bucket_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match=f"{url}.*not the URL of a place in a bucket"):
        storage.open(url)


def test_absent_credentials_are_told_within_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    """A metadata service that never answers, as its address does on a laptop."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("AWS_METADATA_ENDPOINT", f"http://127.0.0.1:{silent.getsockname()[1]}")
        monkeypatch.setenv("AWS_ALLOW_HTTP", "true")
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setattr(objects, "IMPATIENT", {
            "client_options": {"connect_timeout": "1s", "timeout": "1s", "allow_http": True},
            "retry_config": {"max_retries": 1, "retry_timeout": timedelta(seconds=1)},
        })  # fmt: skip
        started = time.monotonic()
        with pytest.raises(Unavailable, match="no credentials: set AWS_ACCESS_KEY_ID"):
            storage.open("s3://bucket-without-credentials/run")
        assert time.monotonic() - started < 20


def test_a_bucket_is_asked_once_and_a_busy_one_is_waited_for(answers: list) -> None:
    answers[:] = [(503, b"busy")]
    started = time.monotonic()
    ObjectFiles("s3://busy-bucket/run")  # the first answer is no reason to give up
    assert time.monotonic() - started < 20
    assert "s3://busy-bucket" in objects._asked
