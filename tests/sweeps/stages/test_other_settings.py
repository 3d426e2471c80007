"""A stage takes over nothing that an earlier stage made under other settings."""

from __future__ import annotations

from pathlib import Path

import pytest

import storage
from support.tiny_runs import copied, settings
from sweeps.cli.main import main
from sweeps.config.load import load
from sweeps.config.schema import GRID
from sweeps.runtime.grid import ProbeSpec, finished
from sweeps.runtime.run import reopen
from sweeps.stages import curate


@pytest.fixture
def words(finished: Path, tiny_pipeline: Path, tmp_path: Path) -> list[str]:
    """Arguments for a copy of a finished run that a test may change."""
    return ["scenes", *settings(tiny_pipeline, copied(finished, tmp_path / "run"))]


@pytest.mark.parametrize(
    ("verb", "change", "message"),
    [
        ("probe", "curation.train=4", "not curated with these settings yet; run `scenesweep curate` first"),
        ("experiments", "curation.train=4", "not curated with these settings yet"),
        ("intervene", "curation.train=4", "not curated with these settings yet"),
        ("curate", "labels.threshold=9", "not every shard is sampled and labelled with these settings"),
        ("probe", "labels.threshold=9", "not curated with these settings yet"),
        ("intervene", "probe.lr=0.5", "probes are not fitted with these settings yet"),
    ],
)
def test_a_verb_alone_refuses_what_was_made_otherwise(words, capsys, verb, change, message):
    assert main([verb, *words]) == 0
    before = sorted(Path(load(words[0], words[1:]).output).rglob("*"))
    capsys.readouterr()
    assert main([verb, *words, change]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert sorted(Path(load(words[0], words[1:]).output).rglob("*")) == before


def test_a_single_edit_refuses_probes_of_other_settings(words, tmp_path, capsys):
    edit = ["--prompt", "a large red sphere on a green floor", "--task", "depth", "--move", "9", "-5"]
    assert main(["intervene", *words, "probe.lr=0.5", *edit, "--to", str(tmp_path / "play")]) == 2
    assert "are not fitted with these settings" in capsys.readouterr().err
    assert not (tmp_path / "play").exists()


@pytest.mark.parametrize(
    ("verb", "message"),
    [
        ("label", "nothing is sampled yet"),
        ("curate", "nothing is sampled yet"),
        ("probe", "nothing is sampled yet"),
        ("intervene", "nothing is sampled yet"),
    ],
)
def test_a_verb_alone_on_a_new_output_is_refused(tiny_pipeline, tmp_path, capsys, verb, message):
    assert main([verb, "scenes", *settings(tiny_pipeline, tmp_path / "out")]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_interventions_before_curation_are_refused(sampled, tiny_pipeline, tmp_path, capsys):
    output = copied(sampled, tmp_path / "run")
    assert main(["intervene", "scenes", *settings(tiny_pipeline, output)]) == 2
    assert "run `scenesweep curate` first" in capsys.readouterr().err


def test_the_split_of_other_settings_is_not_read(words):
    run = reopen(load(words[0], [*words[1:], "curation.train=4"]))
    with pytest.raises(ValueError, match="run `scenesweep curate` first"):
        curate.kept(run)
    other = reopen(load(words[0], [*words[1:], "labels.threshold=9"]))
    assert curate.measures(other) == {}
    assert len(curate.measures(reopen(load(words[0], words[1:])))) == 12


def test_probes_whose_weights_another_fit_replaced_are_fitted_again(finished, tmp_path):
    store = storage.open(str(copied(finished, tmp_path / "run")))
    rows = [row for row in store.table("probes").to_pylist() if row["experiment"] == GRID]
    own, (one, two, *_) = rows[0]["stage_hash"], rows
    names = ("variant", "site", "step", "task", "control", "seed", "experiment")
    first, second = (ProbeSpec(*(row[name] for name in names)) for row in (one, two))
    everything = finished_probes(store, own)
    store.append("probes", [one | {"stage_hash": "other", "attempt": 9}])
    assert finished_probes(store, own) == everything - {first}
    assert finished_probes(store, "other") == {first}
    store.append("probes", [two | {"stage_hash": "other", "attempt": 9, "status": "failed"}])  # wrote no weights
    assert second in finished_probes(store, own)
    store.append("probes", [one | {"attempt": 10}])
    assert finished_probes(store, own) == everything
    assert finished_probes(store, "other") == set()


def finished_probes(store: storage.Store, stage_hash: str) -> set[ProbeSpec]:
    return finished(store, GRID, stage_hash)
