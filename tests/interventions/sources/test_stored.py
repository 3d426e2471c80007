"""A store as the source of interventions, and the speed bench."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import save

import storage
from interventions.sources.authors import AuthorsProbes
from interventions.sources.base import ProbeKey
from interventions.sources.stored import Stored
from sweeps.bench import paired
from sweeps.bench.interventions import bench_interventions


@pytest.fixture
def stored(tmp_path: Path) -> Stored:
    site = storage.SiteShape("up.2.1", 64, 6)
    layout = storage.Layout(samples=4, shard=2, variants=("trained",), sites=(site,), image=(16, 16), latent=(4, 2, 2))
    store = storage.Store.create(str(tmp_path / "run"), layout, durable=False)
    random = np.random.default_rng(0)
    for shard in range(2):
        store.write_activation("trained", "up.2.1", 1, shard, random.normal(size=(2, 64, 6)).astype(np.float16))
        store.write_images("trained", shard, random.integers(0, 255, (2, 16, 16, 3), dtype=np.uint8))
        store.write_labels("saliency", shard, random.integers(0, 255, (2, 16, 16), dtype=np.uint8))
        store.write_labels("depth", shard, random.normal(size=(2, 16, 16)).astype(np.float32))
        for stage in ("sample", "label"):
            store.complete(stage, "trained", shard)
    store.write_samples({"sample": i, "prompt": f"scene {i}", "seed": 50 + i, "shard": i // 2} for i in range(4))
    linear = {"weight": np.ones((1, 6), np.float32)}
    store.put(storage.probe_path("trained", "up.2.1", 1, "depth", "none", 0), save(linear))
    deep = {"weight": np.ones((1, 3), np.float32), "hidden": np.ones((3, 6), np.float32)}
    store.put(storage.probe_path("trained", "up.2.1", 2, "depth", "none", 0), save(deep))
    return Stored(store, (0, 1, 3))


def test_probes_and_vectors_come_from_the_store(stored: Stored):
    assert stored.sources.probe(ProbeKey("depth", "up.2.1", 1)).tolist() == [[1.0] * 6]
    vectors = stored.sources.vectors("up.2.1", 1)
    assert vectors.shape == (3 * 64, 6)
    acts = stored.store.read_activations("trained", "up.2.1", 1, [0, 1, 3])
    assert np.array_equal(vectors, acts.reshape(-1, 6))


def test_missing_and_deep_probes_are_refused(stored: Stored):
    with pytest.raises(ValueError, match="fit variant random with control none at up.2.1, step 1"):
        stored.probe(ProbeKey("depth", "up.2.1", 1, "random"))
    with pytest.raises(ValueError, match="hidden layer"):
        stored.probe(ProbeKey("depth", "up.2.1", 2))


def test_originals_carry_their_own_prompt_seed_and_labels(stored: Stored):
    found = stored.original(2)
    assert (found.prompt, found.seed) == ("scene 2", 52)
    assert np.array_equal(found.image, stored.store.read_images("trained", [2])[0])
    assert np.array_equal(found.depth, stored.store.read_labels("depth", [2])[0])


def test_the_bench_measures_equal_work():
    (row,) = bench_interventions(side=4, channels=48, size=32, trials=2, iterations=12, pairs=1)
    assert row["what"] == "edit_speedup"
    assert set(paired.KEYS) < set(row)
    assert row["difference"] < 1e-5
    assert row["ratio"] == pytest.approx(row["seconds"][0] / row["seconds"][1])


def test_the_inner_optimisation_is_faster_than_the_plain_way_and_the_same():
    """At the widest site of the scenes model; how much faster is for the bench, on a quiet machine."""
    (row,) = bench_interventions(iterations=16, pairs=1)
    assert row["ratio"] > 2
    assert row["difference"] < 1e-4


def test_the_authors_probes_are_found_by_their_names(tmp_path: Path):
    probes = AuthorsProbes(tmp_path, depth_suffix="_x")
    assert probes.path(ProbeKey("saliency", "up.2.1", 5)).relative_to(tmp_path) == Path(
        "large_syn_dataset/at_step_4/segmentation_probe_up_2_attn1_out_1.pth"
    )
    assert probes.path(ProbeKey("depth", "mid.0", 1)).relative_to(tmp_path) == Path(
        "large_syn_dataset_continuous/at_step_0/regression_probe_mid_0_attn1_out_0_x.pth"
    )


def test_the_authors_probes_are_read_without_running_code(tmp_path: Path):
    probes, key = AuthorsProbes(tmp_path), ProbeKey("depth", "up.1.0", 3)
    path = probes.path(key)
    path.parent.mkdir(parents=True)
    weight, bias = torch.ones(1, 4), torch.full((1,), 2.0)
    torch.save({"dense1.weight": weight}, path)
    assert probes(key).tolist() == [[1, 1, 1, 1]]
    torch.save({"dense1.weight": weight, "dense1.bias": bias}, path)
    assert probes(key).tolist() == [[1, 1, 1, 1, 2]]
    torch.save({"dense1.weight": weight, "dense2.weight": weight}, path)
    with pytest.raises(ValueError, match="dense2"):
        probes(key)
    torch.save(Path("x"), path)
    with pytest.raises(ValueError, match="no readable probe"):
        probes(key)
    with pytest.raises(ValueError, match="no readable probe"):
        probes(ProbeKey("depth", "up.1.0", 4))
    with pytest.raises(ValueError, match="variant random"):
        probes(ProbeKey("depth", "up.1.0", 3, "random"))
