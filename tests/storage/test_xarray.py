"""Format 2 as xarray sees it, a part of the steps, and stores of format 1."""

import hashlib
import json
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import zarr

import storage
from storage import Layout, Store, audit
from support.storage_fakes import SITES, activation, contents, fill, fill_shard, label_shard, tiny_layout

xarray = pytest.importorskip("xarray")

SIGMAS = (14.6, 3.25, 0.5)
WRITTEN_BY_VERSION_1 = "b575dbbb0b18e772292bd7d1fafd11e8f7dc32a075139c2d353601f0aebb89b6"
"""Digest of all files of a full tiny store, taken when format 1 was the only one."""


def described(**changes: object) -> Layout:
    """The tiny layout with all that only describes its values."""
    layout = tiny_layout(sigmas=SIGMAS, **changes)
    sites = [
        replace(site, module=f"blocks.{site.name}.attn1", height=2, width=site.tokens // 2) for site in layout.sites
    ]
    return replace(layout, sites=tuple(sites))


def full(store: Store) -> Store:
    """The store with every shard sampled and labelled."""
    fill(store)
    for shard in range(store.layout.shards):
        label_shard(store, shard)
    return store


def test_plain_xarray_opens_every_group(tmp_path: Path):
    store = full(Store.create(str(tmp_path), described(), durable=False))
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # xarray warns where it finds no consolidated metadata
        site = xarray.open_zarr(tmp_path / "activations.zarr", group="trained/mid.0")
        latents = xarray.open_zarr(tmp_path / "latents.zarr", group="random")
        images = xarray.open_zarr(tmp_path / "images.zarr", group="trained")
        labels = xarray.open_zarr(tmp_path / "labels.zarr")
    assert site.activations.dims == ("sample", "step", "token", "channel")
    assert dict(site.activations.attrs, long_name="") == {
        "long_name": "", "module": "blocks.mid.0.attn1", "grid_height": 2, "grid_width": 2, "units": "1",
    }  # fmt: skip
    assert site.sample.values.tolist() == list(range(10))
    assert site.step.values.tolist() == [1, 2, 3]
    assert site.sigma.values.tolist() == list(SIGMAS)
    assert site.sigma.dims == ("step",)
    np.testing.assert_array_equal(
        site.activations.sel(step=2, sample=[9, 4]), store.read_activations("trained", "mid.0", 2, [9, 4])
    )
    np.testing.assert_array_equal(latents.x0.sel(step=3), store.read_latents("random", 3)[1])
    assert set(latents.coords) == {"sample", "step", "sigma"}
    np.testing.assert_array_equal(images.images, store.read_images("trained"))
    np.testing.assert_array_equal(labels.depth.sel(sample=8), store.read_labels("depth", [8])[0])
    assert labels.saliency.dtype == np.uint8


def test_levels_of_any_sampler_are_coordinates_and_those_of_the_papers_path_stay_as_they_were(tmp_path: Path):
    plain = full(Store.create(str(tmp_path / "plain"), described(), durable=False))
    assert b"alphas" not in plain.get("layout.json")
    assert not plain.exists("activations.zarr/trained/mid.0/log_snr/zarr.json")
    ratios = plain.to_xarray("trained", "mid.0").log_snr
    np.testing.assert_allclose(ratios, -2 * np.log(SIGMAS), atol=1e-6)
    layout = replace(described(recorded_steps=(1, 3)), alphas=(0.0, 0.25, 0.8), sigmas=(1.0, 0.75, 0.2))
    flow = fill(Store.create(str(tmp_path / "flow"), layout, durable=False))
    site = xarray.open_zarr(tmp_path / "flow/activations.zarr", group="trained/mid.0")
    assert site.sigma.values.tolist() == [1.0, 0.2]
    np.testing.assert_allclose(site.log_snr, [-np.inf, 2 * np.log(4)], atol=1e-6)
    assert flow.to_xarray("trained", "mid.0").log_snr.equals(site.log_snr)
    assert audit.verify(flow) == []
    assert storage.open(str(tmp_path / "flow")).layout.log_snrs == flow.layout.log_snrs == layout.log_snrs


def test_plain_xarray_opens_the_whole_tree(tmp_path: Path):
    store = fill(Store.create(str(tmp_path), described(), durable=False))
    tree = xarray.open_datatree(tmp_path / "activations.zarr", engine="zarr", consolidated=True)
    found = tree["random/down.0.0"].activations.sel(step=1)
    np.testing.assert_array_equal(found, store.read_activations("random", "down.0.0", 1))
    assert set(tree["trained"].children) == {"down.0.0", "mid.0"}


def test_consolidated_metadata_equal_those_that_zarr_writes(tmp_path: Path):
    Store.create(str(tmp_path), described(), durable=False)
    ours = json.loads((tmp_path / "activations.zarr/zarr.json").read_text())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that consolidated metadata are no part of Zarr v3 yet
        zarr.consolidate_metadata(tmp_path / "activations.zarr/trained/mid.0")
        zarr.consolidate_metadata(tmp_path / "activations.zarr")
    by_zarr = json.loads((tmp_path / "activations.zarr/zarr.json").read_text())
    consolidated = by_zarr["consolidated_metadata"]["metadata"]
    for node in consolidated.values():  # zarr keeps what the inner groups consolidate, which is redundant
        if node["node_type"] == "group":
            node["consolidated_metadata"]["metadata"] = {}
    assert ours == by_zarr


@pytest.mark.parametrize("recorded", [(2,), (1, 3)])
def test_some_of_the_steps_are_stored(tmp_path: Path, recorded: tuple[int, ...]):
    layout = described(recorded_steps=recorded)
    store = Store.create(str(tmp_path), layout, durable=False)
    absent = [step for step in (1, 2, 3) if step not in recorded]
    with pytest.raises(
        ValueError, match=rf"mid\.0/activations: step {absent[0]} is not recorded; there are {recorded[0]}"
    ):
        store.read_activations("trained", "mid.0", absent[0])
    full(store)
    again = storage.open(str(tmp_path))
    assert again.layout.recorded_steps == recorded
    site = xarray.open_zarr(tmp_path / "activations.zarr", group="trained/mid.0")
    assert site.step.values.tolist() == list(recorded)
    assert site.sigma.values.tolist() == [SIGMAS[step - 1] for step in recorded]
    for step in recorded:
        stored = again.read_activations("trained", "mid.0", step)
        np.testing.assert_array_equal(site.activations.sel(step=step), stored)
        expected = [activation(tiny_layout(), SITES[1], step, shard) for shard in range(3)]
        np.testing.assert_array_equal(stored, np.concatenate(expected))
    assert again.read_latents("trained", absent[0])[0].shape == (10, 4, 2, 3)  # latents keep all steps
    assert audit.verify(again) == []
    assert again.completed("sample", "trained") == {0, 1, 2}
    chunks = {key.path for spec in layout.arrays.values() for key in spec.keys()}
    assert storage.budget.price(layout).total == sum(filter(None, map(again.files.size, chunks)))
    assert again.layout.diff(described()) == [
        f"recorded_steps: only in the store nothing, only requested {', '.join(map(str, absent))}"
    ]


@pytest.mark.parametrize("steps", [(3, 1), (0,), (4,), (2, 2)])
def test_recorded_steps_ascend_within_the_steps(steps: tuple[int, ...]):
    with pytest.raises(ValueError, match=r"layout\.recorded_steps: .* must ascend within 1\.\.3"):
        tiny_layout(recorded_steps=steps)


def test_a_store_of_format_1_is_written_as_it_always_was(tmp_path: Path):
    store = full(Store.create(str(tmp_path), tiny_layout(format=1), durable=False))
    digest = hashlib.sha256()
    for path, data in sorted(contents(store).items()):
        digest.update(path.encode() + b"\0" + data + b"\0")
    assert digest.hexdigest() == WRITTEN_BY_VERSION_1


def test_a_store_of_format_1_is_resumed_in_format_1(tmp_path: Path):
    part = Store.create(str(tmp_path / "part"), tiny_layout(format=1), durable=False)
    fill_shard(part, "trained", 0)
    resumed = Store.create(part.url, described(), durable=False)  # today's layout of the same run
    assert resumed.layout.format == 1
    assert resumed.completed("sample", "trained") == {0}
    full(resumed)
    reference = full(Store.create(str(tmp_path / "whole"), tiny_layout(format=1), durable=False))
    assert contents(resumed) == contents(reference)
    assert audit.verify(resumed) == []
    with pytest.raises(ValueError, match=r"recorded_steps: only in the store 1, 3"):
        Store.create(part.url, tiny_layout(recorded_steps=(2,)))
    for version in (1, 2):  # a damaged layout is written again in the format of the arrays
        store = Store.create(str(tmp_path / f"damaged{version}"), tiny_layout(format=version), durable=False)
        data = store.get("layout.json")
        store.put("layout.json", data[:-9])
        Store.create(store.url, tiny_layout(), durable=False)
        assert store.get("layout.json") == data


def test_what_only_describes_the_values_never_forbids_to_resume(tmp_path: Path):
    store = fill(Store.create(str(tmp_path), described(), durable=False))
    before = contents(store)
    assert Store.create(store.url, tiny_layout(), durable=False).layout.sigmas == SIGMAS
    assert contents(store) == before
    data = store.get("layout.json")
    store.put("layout.json", data.replace(b"3.25", b"3.75"))  # damaged: the arrays have the right ones
    Store.create(store.url, described(), durable=False)
    assert store.get("layout.json") == data
