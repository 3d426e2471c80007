"""Fixtures that several test files share: one small local Ray for the session, a tiny model, a finished run."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from cluster.session import Session, connect
from storage import Store

if TYPE_CHECKING:
    from sweeps.report.build import Drawn


@pytest.fixture(autouse=True)
def no_lines_while_waiting(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a slow machine a run tells that it is still checking, which is not what tests of its messages are about."""
    if "progress" not in request.node.nodeid:
        monkeypatch.setattr("sweeps.runtime.progress.EVERY", math.inf)


@pytest.fixture(scope="session")
def ray_local() -> Iterator[Session]:
    """Ray with two CPUs on 127.0.0.1, without dashboard or token, started at its first use."""
    with connect("local", num_cpus=2) as session:
        yield session


@pytest.fixture(scope="session")
def tiny_pipeline(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pipeline directory of a narrow random model."""
    from support import tiny_model

    return tiny_model.save(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="session")
def sampled(tiny_pipeline: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An undisturbed run of the tiny model, its sampling stage only, in this process. Tests must not change it."""
    from support.tiny_runs import configured
    from sweeps import pipeline

    output = tmp_path_factory.mktemp("runs") / "sampled"
    result = pipeline.execute(configured(tiny_pipeline, output), ("sample",))
    assert result.failed == {}
    return output


@pytest.fixture(scope="session")
def finished(sampled: Path, tiny_pipeline: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run `sampled` with all later stages. Tests must not change it."""
    from support.tiny_runs import configured, copied
    from sweeps import pipeline

    output = copied(sampled, tmp_path_factory.mktemp("runs") / "finished")
    result = pipeline.execute(configured(tiny_pipeline, output))
    assert result.failed == {}
    return output


@pytest.fixture(scope="session")
def full_report(tmp_path_factory: pytest.TempPathFactory) -> tuple[Store, Drawn, float]:
    """A run of the full grid on 128 images, its report, and the processor seconds that writing the report took."""
    from support.report_store import CONFIG, Made, make_store
    from sweeps.analysis import tables
    from sweeps.report import build

    store = make_store(tmp_path_factory.mktemp("full"), Made(train=32, test=96, size=128))
    started = time.process_time()
    drawn = build.draw(tables.load(store, CONFIG), store)
    build.write(store, drawn)
    return store, drawn, time.process_time() - started


@pytest.fixture
def flaky_s3(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """A local S3 server; yields a list of HTTP error codes that it sends before it answers requests again."""
    pytest.importorskip("moto.server")
    from moto.server import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import make_server

    app = DomainDispatcherApplication(create_backend_app)
    errors: list[int] = []

    def flaky(environ: dict, start_response) -> list[bytes]:  # noqa: ANN001 - WSGI
        if errors:
            start_response(f"{errors.pop()} Unavailable", [("Content-Length", "0")])
            return [b""]
        return app(environ, start_response)

    server = make_server("127.0.0.1", 0, flaky, threaded=True)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    for name, value in {
        "AWS_ENDPOINT": f"http://127.0.0.1:{server.port}", "AWS_ALLOW_HTTP": "true",
        "AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_REGION": "us-east-1",
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    yield errors
    server.shutdown()
    thread.join()
