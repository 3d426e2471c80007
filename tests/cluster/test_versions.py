"""Versions of a cluster, and of the machine that submitted a job, are compared with this process."""

from __future__ import annotations

import json

import pytest

from cluster.versions import SUBMITTED_FROM, check_arrival, check_versions, versions


def test_a_cluster_of_another_version_is_refused_and_both_are_named() -> None:
    here = versions()
    check_versions(here, "here")
    check_versions({"ray": here["ray"]}, "here")
    with pytest.raises(ValueError, match=f"http://head .*Ray 1.0,.*Ray {here['ray']}"):
        check_versions({"ray": "1.0"}, "http://head")


def test_a_job_is_refused_if_it_was_submitted_from_other_versions(monkeypatch: pytest.MonkeyPatch) -> None:
    check_arrival()
    here = versions()
    same_but_last = here | {"python": here["python"].rpartition(".")[0] + ".99"}
    for sent in (here, same_but_last):
        monkeypatch.setenv(SUBMITTED_FROM, json.dumps(sent))
        check_arrival()
    for name, version in [("ray", "2.0.0"), ("python", "3.9.1")]:
        monkeypatch.setenv(SUBMITTED_FROM, json.dumps(here | {name: version}))
        with pytest.raises(ValueError, match=f"submitted from .*{version}.*{here[name]}"):
            check_arrival()
