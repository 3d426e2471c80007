"""`scenesweep verify` samples shards again and finds stored values that differ from the model's."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

import storage
from support.tiny_runs import configured
from sweeps.cli import recompute
from sweeps.cli.main import main
from sweeps.stages.sample import SampleTask


@pytest.fixture
def forged(sampled: Path, tmp_path: Path) -> Path:
    """A run in which one chunk of each shard was replaced together with its record: checksums cannot find it."""
    output = tmp_path / "forged"
    shutil.copytree(sampled, output)
    store = storage.open(str(output))
    for variant in ("trained", "random"):
        for shard in range(3):
            _forge(store, variant, shard)
    return output


def _forge(store: storage.Store, variant: str, shard: int) -> None:
    record = dict(store.records.read("shards/"))[storage.keys.record_path("sample", variant, shard)]
    assert isinstance(record, storage.Record)
    rows = list(store.layout.shard_samples(shard))
    values = store.read_activations(variant, "up.1.0", 7, rows)
    values[0, 0] += np.float16(1)
    store.write_activation(variant, "up.1.0", 7, shard, values)
    changed = store.complete("sample", variant, shard, stage_hash=record.stage_hash)
    chunks = {**record.chunks, **changed.chunks}
    store.records.write(storage.Record("sample", variant, shard, chunks, record.stage_hash), sync=False)


def test_an_unchanged_run_is_reproduced_bit_by_bit(sampled, tiny_pipeline, capsys):
    compared, found = recompute.recompute(configured(tiny_pipeline, sampled), 1, seed=3)
    assert compared == 15 * (16 + 2) + 1
    assert found == []


def test_changed_values_with_valid_checksums_are_found_and_marked(forged, capsys):
    assert storage.audit.verify(storage.open(str(forged))) == []
    assert main(["verify", str(forged), "--repair"]) == 1
    out = capsys.readouterr().out
    assert out.count("recomputed: activations.zarr/") == 1
    assert "/up.1.0/activations/c/" in out
    assert "271 chunks recomputed, 1 disagree" in out
    store = storage.open(str(forged))
    assert sum(len(store.completed("sample", variant)) for variant in ("trained", "random")) == 5


def test_without_recomputing_only_bytes_are_reread(forged, capsys):
    assert main(["verify", str(forged), "--recompute", "0"]) == 0
    assert "recomputed" not in capsys.readouterr().out


def test_a_missing_model_is_reported(sampled, tmp_path, capsys):
    output = tmp_path / "moved"
    shutil.copytree(sampled, output)
    text = (output / "config.yaml").read_text()
    model = next(line for line in text.splitlines() if line.strip().startswith("name: /"))
    store = storage.open(str(output))
    store.put("config.yaml", text.replace(model, "  name: /nowhere/at/all").encode())
    recorded = store.recorded("manifest.json") | store.checksums(["config.yaml"])
    store.put_document("manifest.json", store.document("manifest.json"), recorded)
    assert main(["verify", str(output)]) == 0
    assert "not recomputed: " in capsys.readouterr().out


def test_cleaned_runs_have_nothing_to_compare(sampled, tiny_pipeline, tmp_path):
    output = tmp_path / "cleaned"
    shutil.copytree(sampled, output)
    storage.open(str(output)).drop_activations()
    with pytest.raises(ValueError, match="dropped"):
        recompute.recompute(configured(tiny_pipeline, output), 1, seed=0)


def test_shards_are_drawn_from_the_finished_ones_of_all_variants(sampled):
    store = storage.open(str(sampled))
    drawn = recompute.choose(store, ("trained", "random"), 99, seed=0)
    assert drawn == [SampleTask(v, s) for v in ("random", "trained") for s in range(3)]
    some = {tuple(recompute.choose(store, ("trained", "random"), 1, seed=seed)) for seed in range(40)}
    assert len(some) == 6


def test_rounding_differs_from_other_values(sampled):
    store = storage.open(str(sampled))
    values = store.read_activations("trained", "mid.0", 3, list(range(4)))
    scale = np.sqrt(np.mean(values.astype(np.float64) ** 2))
    near, far = values.copy(), values.copy()
    near[0, 0, 0] = np.nextafter(near[0, 0, 0], np.float16(np.inf))
    far[0, 0, 0] += np.float16(scale)
    kinds = {}
    for exact in (True, False):
        for name, changed in (("same", values), ("near", near), ("far", far)):
            comparison = recompute.Comparison(store, SampleTask("trained", 0), exact)
            comparison.activation("mid.0", 3, changed)
            kinds[name, exact] = [found.kind for found in comparison.found]
    assert kinds["same", True] == kinds["same", False] == kinds["near", False] == []
    assert kinds["near", True] == ["rounding"]
    assert kinds["far", True] == kinds["far", False] == ["recomputed"]


def test_other_versions_are_allowed_to_round(sampled, tiny_pipeline, tmp_path, monkeypatch):
    output = tmp_path / "older"
    shutil.copytree(sampled, output)
    store = storage.open(str(output))
    manifest = store.document("manifest.json")
    manifest["versions"]["torch"] = "2.0.0"
    store.put_document("manifest.json", manifest, store.recorded("manifest.json"))
    seen = []
    monkeypatch.setattr(recompute, "sample_again", lambda worker, comparison: seen.append(comparison.exact))
    for place in (output, sampled):
        recompute.recompute(configured(tiny_pipeline, place), 1, seed=0)
    assert seen == [False, True]
