"""Probes that the paper's authors publish drive a run's interventions."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

import storage
from interventions.pictures import FOLDER
from interventions.sources.authors import AuthorsProbes
from interventions.sources.base import ProbeKey
from interventions.sources.stored import Stored
from support.tiny_runs import configured, settings
from sweeps import pipeline
from sweeps.cli.main import main
from sweeps.config.hashing import hashes, science

PLAIN = ("trial", "control", "dx", "dy", "score_before", "score_after", "edit_norm", "readout_after")


@pytest.fixture
def published(finished: Path, tmp_path: Path) -> Path:
    """Files under the authors' names, with the weights that `finished` fitted for step 1."""
    own = Stored(storage.open(str(finished)), (), {})
    for site in own.store.layout.sites:
        key = ProbeKey("depth", site.name, 1)
        path = AuthorsProbes(tmp_path / "published").path(key)
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save({"dense1.weight": torch.from_numpy(own.probe(key))}, path)
    return tmp_path / "published"


def edits(output: Path) -> list[tuple]:
    """Rows of the last attempt."""
    rows = storage.open(str(output)).table("interventions").to_pylist()
    last = max(row["attempt"] for row in rows)
    return sorted((tuple(row[name] for name in PLAIN) for row in rows if row["attempt"] == last), key=str)


def test_equal_weights_from_the_authors_files_give_equal_edits(
    finished: Path, tiny_pipeline: Path, published: Path, tmp_path: Path
) -> None:
    output = tmp_path / "run"
    shutil.copytree(finished, output)
    setting = f"interventions.probes={published}"
    assert pipeline.execute(configured(tiny_pipeline, output, setting)).failed == {}
    assert len(storage.open(str(output)).table("interventions")) == 2 * len(edits(finished))
    assert edits(output) == edits(finished)
    assert any(str(published) in path.read_text() for path in (output / FOLDER).rglob("*.yaml"))
    assert str(published) in (output / "report" / "index.html").read_text()


def test_published_probes_need_no_fit_but_controls_do(
    tiny_pipeline: Path, published: Path, tmp_path: Path, capsys
) -> None:
    few = settings(tiny_pipeline, tmp_path / "run", "sweep.steps=[15]", f"interventions.probes={published}")
    assert main(["plan", "scenes", *few]) == 0
    capsys.readouterr()
    assert main(["plan", "scenes", *few, "interventions.controls=[none,random_probe]"]) == 2
    assert "interventions.controls=random_probe: needs" in capsys.readouterr().err
    AuthorsProbes(published).path(ProbeKey("depth", "up.2.1", 1)).unlink()
    assert main(["plan", "scenes", *few]) == 2
    line = capsys.readouterr().err
    for part in ("interventions.probes=", "up_2_attn1_out_1", "probe_checkpoints.zip"):
        assert part in line


def test_runs_without_published_probes_keep_their_hashes(tiny_pipeline: Path) -> None:
    plain = configured(tiny_pipeline, "x")
    published_run = configured(tiny_pipeline, "x", "interventions.probes=/folder")
    assert "probes" not in science(plain, "interventions")
    assert hashes(published_run, "r").intervene != hashes(plain, "r").intervene
    assert hashes(published_run, "r").probe == hashes(plain, "r").probe
