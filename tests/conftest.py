"""What several test files share: one small local Ray for the whole session."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from cluster.session import Session, connect


@pytest.fixture(scope="session")
def ray_local() -> Iterator[Session]:
    """A Ray of two CPUs on 127.0.0.1, without dashboard or token, started at its first use."""
    with connect("local", num_cpus=2) as session:
        yield session
