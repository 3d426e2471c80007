"""A finished store in a notebook: xarray, scores, and the dataset for torch."""

import uuid
from pathlib import Path

import numpy as np
import pytest

import storage
from storage import SCORES, MissingChunk, Store
from storage.tables import PROBES
from support.storage_fakes import fill, label_shard, tiny_layout


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("where", ["local", "memory"])
def test_activations_as_xarray(tmp_path: Path, where: str, version: int):
    pytest.importorskip("xarray")
    url = str(tmp_path) if where == "local" else f"memory://{uuid.uuid4().hex}"
    store = fill(Store.create(url, tiny_layout(format=version, sigmas=(3.0, 2.0, 1.0)), durable=False))
    found = store.to_xarray("random", "mid.0")
    assert found.dims == ("sample", "step", "token", "channel")
    assert found.name == "activations"
    assert found.step.values.tolist() == [1, 2, 3]
    chosen = found.sel(step=3, sample=[8, 1])
    np.testing.assert_array_equal(chosen, store.read_activations("random", "mid.0", 3, [8, 1]))
    assert ("sigma" in found.coords) == (version == 2)
    store.delete(next(store.array(store.layout.activations("random", "mid.0")).keys()).path)
    with pytest.raises(MissingChunk, match=r"no such chunk in .* \(1 of 9 are missing\)"):
        store.to_xarray("random", "mid.0")
    store.drop_activations()
    with pytest.raises(MissingChunk, match="were cleaned"):
        store.to_xarray("trained", "mid.0")


def test_scores_are_those_of_the_present_settings(tmp_path: Path):
    store = Store.create(str(tmp_path), tiny_layout(), durable=False)
    key = {"experiment": "grid", "variant": "trained", "step": 2, "task": "depth", "control": "none", "seed": 0}
    rows = [
        {"site": "mid.0", "rmse": 0.5, "status": "done", "stage_hash": "now", "attempt": 1},
        {"site": "mid.0", "rmse": 0.4, "status": "done", "stage_hash": "now", "attempt": 2},
        {"site": "conv.mid", "rmse": 0.3, "status": "done", "stage_hash": "now", "attempt": 1},
        {"site": "down.0.0", "rmse": 0.7, "status": "done", "stage_hash": "now", "attempt": 1},
        {"site": "down.0.0", "rmse": 0.1, "status": "done", "stage_hash": "before", "attempt": 9},
        {"site": "down.0.0", "status": "failed", "error": "NaN", "stage_hash": "now", "attempt": 1, "seed": 1},
    ]
    store.append("probes", [key | row for row in rows])
    store.put_document("manifest.json", {"stages": {"sample": "s", "probe": "now"}})
    frame = storage.open(str(tmp_path)).scores()
    assert frame["site"].tolist() == ["down.0.0", "mid.0", "conv.mid"]  # in order of execution, then the others
    assert frame["rmse"].tolist() == [0.7, 0.4, 0.3]
    assert frame["dice"].isna().all()
    assert list(frame.columns) == list(SCORES)


def test_every_score_of_the_table_is_explained():
    bookkeeping = {"index", "dropped", "seconds", "status", "error", "attempt", "stage_hash"}
    assert set(SCORES) == set(PROBES.names) - bookkeeping


def test_the_dataset_holds_one_split(tmp_path: Path):
    torch = pytest.importorskip("torch")
    store = fill(Store.create(str(tmp_path), tiny_layout(), durable=False))
    for shard in range(3):
        label_shard(store, shard)
    with pytest.raises(ValueError, match="not curated yet"):
        store.torch_dataset("mid.0", 2, "depth")
    splits = ["train", "test", "train", "", "train", "val", "test", "train", "train", "train"]
    store.write_curation({"sample": i, "keep": i != 4, "reason": "", "split": split} for i, split in enumerate(splits))
    data = store.torch_dataset("mid.0", 2, "depth")
    assert data.samples.tolist() == [0, 2, 7, 8, 9]
    (first, labels), (rest, _) = torch.utils.data.DataLoader(data, batch_size=3)
    assert (first.dtype, labels.dtype) == (torch.float32, torch.float32)
    expected = store.read_activations("trained", "mid.0", 2, [0, 2, 7])
    np.testing.assert_array_equal(first.numpy(), expected.astype(np.float32))
    np.testing.assert_array_equal(labels.numpy(), store.read_labels("depth", [0, 2, 7]))
    assert len(rest) == 2
    assert store.torch_dataset("mid.0", 1, "saliency", split="test", variant="random").samples.tolist() == [1, 6]
    with pytest.raises(ValueError, match="no samples in split 'trial'; there are test, train, val"):
        store.torch_dataset("mid.0", 2, "depth", split="trial")
    with pytest.raises(ValueError, match="no array"):
        store.torch_dataset("mid.9", 2, "depth")


def test_samples_and_curation_are_tables_too(tmp_path: Path):
    store = Store.create(str(tmp_path), tiny_layout(), durable=False)
    store.write_samples({"sample": i, "prompt": "p", "seed": i, "shard": i // 4} for i in range(10))
    store.write_curation({"sample": i, "keep": True, "reason": "", "split": "train"} for i in range(10))
    assert store.table("samples").equals(store.samples())
    assert store.table("curation").equals(store.curation())
