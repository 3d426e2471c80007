"""A run that finds its output in use is refused before it writes anything; one that lost it stops with one line."""

from __future__ import annotations

from pathlib import Path

import pytest

import storage
from storage.keys import LEASE
from support.tiny_runs import copied, settings
from sweeps.cli.main import main
from sweeps.stages import probe


def files(folder: Path) -> dict[str, bytes]:
    """Every file of an output, but for the lease and its lock."""
    found = (path for path in folder.rglob("*") if path.is_file() and not path.name.startswith(LEASE))
    return {str(path): path.read_bytes() for path in found}


VERBS = {
    "run": ["scenes", "probe.epochs=7"],
    "sample": ["scenes", "sampling.retries=5"],
    "label": ["scenes", "labels.threshold=9"],
}


@pytest.mark.parametrize("verb", VERBS)
def test_a_refused_run_writes_nothing(sampled, tiny_pipeline, tmp_path, capsys, verb):
    """Neither its configuration nor its manifest, which describe the run that is at work."""
    output = copied(sampled, tmp_path / "out")
    before = files(output)
    preset, *more = VERBS[verb]
    with storage.hold(str(output), "the run at work"):
        assert main([verb, preset, *settings(tiny_pipeline, output, *more)]) == 2
    assert files(output) == before
    assert "in use by the run at work" in capsys.readouterr().err.strip().splitlines()[-1]


def test_a_refused_first_run_writes_nothing(tiny_pipeline, tmp_path):
    output = tmp_path / "new"
    with storage.hold(str(output), "the run at work"):
        assert main(["run", "scenes", *settings(tiny_pipeline, output)]) == 2
        assert files(output) == {}


def test_a_run_that_is_wrong_leaves_no_folder(tiny_pipeline, tmp_path):
    output = tmp_path / "new"
    assert main(["run", "scenes", *settings(tiny_pipeline, output, "sampling.sites=[up.9.9]")]) == 2
    assert not output.exists()


def test_a_run_that_lost_its_output_stops_with_one_line(sampled, tiny_pipeline, tmp_path, monkeypatch, capsys):
    """It does not go through the other trials, each of which would fail to write."""
    output, lost = copied(sampled, tmp_path / "out"), []
    fit = probe.fit_trial

    def lose(job, trial):
        lost.append(files(output))
        lease = storage.lease.guarding(str(output))[0]
        storage.open(str(output)).files.put(LEASE, [b"{}"])
        lease.beat()
        return fit(job, trial)

    monkeypatch.setattr(probe, "fit_trial", lose)
    more = ["sweep.trial_axes=[variant,step]", "probe.epochs=1"]
    assert main(["run", "scenes", *settings(tiny_pipeline, output, *more)]) == 2
    assert len(lost) == 1
    assert files(output) == lost[0]
    assert "another run took this store over" in capsys.readouterr().err.strip().splitlines()[-1]


def test_rows_of_other_settings_are_not_shown_in_silence(finished, tiny_pipeline, tmp_path, capsys):
    """A run that was stopped after curation has no probes of its own yet; a report shows those before, and says so."""
    output = copied(finished, tmp_path / "out")
    assert main(["report", str(output)]) == 0
    assert "earlier settings" not in capsys.readouterr().out
    assert main(["curate", "scenes", *settings(tiny_pipeline, output, "curation.train=4")]) == 0
    assert main(["report", str(output)]) == 0
    warning = "Results of earlier settings are shown for: main grid"
    assert warning in capsys.readouterr().out
    assert warning in (output / "report/index.html").read_text()
    assert main(["compare", str(output), str(finished)]) == 0
    assert f"{output}: {warning}" in capsys.readouterr().out
