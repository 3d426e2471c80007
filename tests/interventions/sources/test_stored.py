"""A store as the source of interventions."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save

import storage
from interventions.sources.base import ProbeKey
from interventions.sources.stored import Stored


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
    return Stored(store, (0, 1, 3), {"up.2.1": (8, 8)}, threshold=127, depth_std=2.0)


@pytest.mark.parametrize("task", ["saliency", "depth"])
def test_moments_take_the_classes_of_all_training_patches_from_the_labels(stored: Stored, task: str):
    found = stored.sources.moments(task, "up.2.1", 1, "trained")
    acts = stored.store.read_activations("trained", "up.2.1", 1, [0, 1, 3]).astype(np.float64)
    labels = stored.store.read_labels(task, [0, 1, 3]).astype(np.float64)
    if task == "saliency":
        labels = labels > 127
    positive, negative, values = [], [], ([], [])
    for image, label in zip(acts, labels, strict=True):
        patches = [label[2 * r : 2 * r + 2, 2 * c : 2 * c + 2].mean() for r in range(8) for c in range(8)]
        cut = 0.5 if task == "saliency" else np.mean(patches)
        for vector, value in zip(image, patches, strict=True):
            (positive if value > cut else negative).append(vector)
            values[int(value > cut)].append(value / (1 if task == "saliency" else 2.0))
    assert np.allclose(found.positive, np.mean(positive, axis=0))
    assert np.allclose(found.negative, np.mean(negative, axis=0))
    assert found.contrast == pytest.approx(np.mean(values[1]) - np.mean(values[0]))
    assert np.allclose(found.covariance, np.cov(acts.reshape(-1, 6).T, bias=True))


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
