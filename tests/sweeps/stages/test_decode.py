"""The control surface_rgb on a tiny random model: its rows, the colours it reads, resume, repair and refusal."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

import storage
from probing.diffusion.model import load
from probing.probes.surface import picture_points
from support.tiny_runs import configured, copied, settings
from sweeps import pipeline
from sweeps.cli.main import main
from sweeps.runtime import side_store
from sweeps.runtime.run import reopen
from sweeps.stages import decode

MORE = ("sweep.controls=[none,surface_rgb]", "sweep.control_sites=[up.3.0,mid.0]", "interventions.tasks=[]")


@pytest.fixture(scope="module")
def finished(finished: Path, tiny_pipeline: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shared finished run with the control surface_rgb."""
    output = copied(finished, tmp_path_factory.mktemp("runs") / "decoded")
    assert pipeline.execute(configured(tiny_pipeline, output, *MORE), ("probe",)).failed == {}
    return output


def opened(pipe: Path, output: Path, *more: str):
    config = configured(pipe, output, *MORE, *more)
    return reopen(config)


def test_the_control_has_rows_at_the_chosen_sites(finished: Path) -> None:
    rows = [r for r in storage.open(str(finished)).table("probes").to_pylist() if r["control"] != "none"]
    assert {(r["variant"], r["site"], r["control"], r["channels"]) for r in rows} == {
        ("trained", site, "surface_rgb", 195) for site in ("up.3.0", "mid.0")
    }
    assert len(rows) == 2 * 3 * 2
    assert all(r["status"] == "done" and np.isfinite(r["train_loss"]) for r in rows)


def test_features_are_the_colours_of_the_decoded_clean_estimates(finished: Path, tiny_pipeline: Path) -> None:
    run = opened(tiny_pipeline, finished)
    model = load(run.config.model)
    clean = run.store.read_latents("trained", 2, [5])[1]
    store = side_store.open_if_present(decode.url(str(finished)))
    assert store is not None
    found = store.read_activations("trained", "rgb", 2, [5])
    expected = picture_points(model.decode(torch.from_numpy(clean)).numpy(), model.latent_shape[1:])
    np.testing.assert_allclose(found.astype(float), expected.astype(float), atol=0.01)


def test_nothing_is_decoded_twice_and_more_steps_are_added(finished: Path, tiny_pipeline: Path) -> None:
    assert decode.missing(opened(tiny_pipeline, finished)) == []
    wider = opened(tiny_pipeline, finished, "sweep.steps=[1,2,3,15]")
    assert [(t.shard, t.steps) for t in decode.missing(wider)] == [(shard, (3,)) for shard in range(3)]
    some = opened(tiny_pipeline, finished, "sweep.steps=[1,2,3,14,15]", "sweep.surface_rgb_steps=[1,14]")
    assert {t.steps for t in decode.missing(some)} == {(14,)}
    without = opened(tiny_pipeline, finished, "sweep.controls=[none]", "sweep.steps=[1,2,3,15]")
    assert decode.missing(without) == []


def test_a_lost_chunk_is_reported_and_decoded_again(finished: Path, tiny_pipeline: Path, tmp_path: Path) -> None:
    output = tmp_path / "hurt"
    shutil.copytree(finished, output)
    chunk = next(
        p for p in (output / "decoded/activations.zarr/trained/rgb/activations/c/1/14").rglob("*") if p.is_file()
    )
    before = chunk.read_bytes()
    chunk.unlink()
    assert main(["verify", str(output), "--repair", "--recompute", "0"]) == 1
    for part in (output / "results" / "probes").glob("*.parquet"):
        if "surface_rgb" in pq.read_table(part)["control"].to_pylist():
            part.unlink()
    assert decode.missing(opened(tiny_pipeline, output)) == [decode.DecodeTask(1, (15,))]
    pipeline.execute(configured(tiny_pipeline, output, *MORE), ("probe",))
    assert chunk.read_bytes() == before
    assert main(["verify", str(output), "--recompute", "0"]) == 0


def test_clean_drops_the_colours(finished: Path, tmp_path: Path) -> None:
    output = tmp_path / "clean"
    shutil.copytree(finished, output)
    assert main(["clean", str(output)]) == 0
    left = list((output / "decoded" / "activations.zarr").rglob("c/*/*/*/*"))
    assert not left


def test_a_run_without_latents_is_refused_in_one_line(finished: Path, tiny_pipeline: Path, monkeypatch) -> None:
    run = opened(tiny_pipeline, finished)
    monkeypatch.setattr(run.store, "layout", replace(run.store.layout, latent=()))
    with pytest.raises(ValueError, match=r"sweep\.controls=surface_rgb: .* holds no latents"):
        decode.layout(run)


def test_a_plan_shows_what_is_decoded(tiny_pipeline: Path, tmp_path: Path, capsys) -> None:
    assert main(["plan", "scenes", *settings(tiny_pipeline, tmp_path / "out", *MORE)]) == 0
    out = capsys.readouterr().out
    assert "36 clean estimates, for surface_rgb" in out
    assert "decoded images" in out
    few = settings(tiny_pipeline, tmp_path / "out", *MORE, "sweep.surface_rgb_steps=[15]")
    assert main(["plan", "scenes", *few]) == 0
    assert "12 clean estimates, for surface_rgb" in capsys.readouterr().out
    assert main(["plan", "scenes", *settings(tiny_pipeline, tmp_path / "out")]) == 0
    assert "surface_rgb" not in capsys.readouterr().out
