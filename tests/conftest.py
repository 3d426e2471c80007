"""What several test files share: one small local Ray for the whole session, a tiny model, a finished run."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster.session import Session, connect


@pytest.fixture(scope="session")
def ray_local() -> Iterator[Session]:
    """A Ray of two CPUs on 127.0.0.1, without dashboard or token, started at its first use."""
    with connect("local", num_cpus=2) as session:
        yield session


@pytest.fixture(scope="session")
def tiny_pipeline(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A narrow random model as a pipeline directory."""
    import tiny

    return tiny.save(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="session")
def finished(tiny_pipeline: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An undisturbed run of the tiny model, all stages."""
    import pipeline_runs

    from sweeps import pipeline

    output = tmp_path_factory.mktemp("runs") / "whole"
    result = pipeline.carry_out(pipeline_runs.configured(tiny_pipeline, output))
    assert result.failed == {}
    return output
