"""The layout: index arithmetic, metadata, validation, and the text of differences."""

import json
import pickle

import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

from storage import FORMAT_VERSION, Layout, SiteShape
from storage.codec import CODECS, codec_for
from storage.format import ChunkNumbers
from storage.keys import checked_name, probe_path, record_path
from support.storage_fakes import SITES, tiny_layout


def test_shards_partition_the_samples():
    layout = tiny_layout()
    assert [list(layout.shard_samples(i)) for i in range(layout.shards)] == [
        [0, 1, 2, 3], [4, 5, 6, 7], [8, 9],
    ]  # fmt: skip
    with pytest.raises(ValueError, match=r"shard 3 is outside 0\.\.2"):
        layout.shard_samples(3)


@given(samples=st.integers(1, 20), shard=st.integers(1, 9), steps=st.integers(1, 3))
@settings(max_examples=15, deadline=None)
def test_every_sample_and_step_has_exactly_one_chunk(samples: int, shard: int, steps: int):
    layout = tiny_layout(samples=samples, shard=shard, steps=steps)
    for spec in layout.arrays.values():
        keys = list(spec.keys())
        assert len({key.path for key in keys}) == len(keys)
        covered = [(row, key.step) for key in keys for row in spec.rows(key.shard)]
        expected_steps = range(1, steps + 1) if spec.stepped else [None]
        assert sorted(covered, key=str) == sorted(
            ((s, k) for s in range(spec.shape[0]) for k in expected_steps), key=str
        )


@given(samples=st.integers(1, 30), shard=st.integers(1, 8), recorded=st.sampled_from([(1,), (1, 3), (1, 2, 3)]))
def test_numbers_stand_for_the_chunks_of_a_layout(samples: int, shard: int, recorded: tuple[int, ...]):
    layout = tiny_layout(samples=samples, shard=shard, recorded_steps=recorded)
    numbers = ChunkNumbers(layout)
    keys = [key for spec in layout.arrays.values() for key in spec.keys()]
    assert [numbers.key(number) for number in range(len(numbers))] == keys
    assert [numbers.number(key.path) for key in keys] == list(range(len(keys)))
    every = np.arange(len(keys))
    assert numbers.shard(every).tolist() == [key.shard for key in keys]
    slots = numbers.slot(every)
    assert len(set(zip(numbers.shard(every).tolist(), slots.tolist(), strict=True))) == len(keys)
    assert numbers.slots == len({(key.array, key.step) for key in keys})
    for one in range(layout.shards):
        own = every[numbers.shard(every) == one]
        assert numbers.at(one, numbers.slot(own)).tolist() == own.tolist()


@pytest.mark.parametrize(
    "tail", ["c/00/0/0/0", "c/+0/0/0/0", "c/-1/0/0/0", "c/9/0/0/0", "c/0/9/0/0", "c/0/0/0", "c/0", "c/x/0/0/0",
             "c/0/0/0/0/0", "c/0/-1/0/0", "zarr.json"],
)  # fmt: skip
def test_a_file_that_is_no_chunk_has_no_number(tail: str):
    assert ChunkNumbers(tiny_layout()).number(f"activations.zarr/trained/mid.0/activations/{tail}") is None


def test_paths_are_those_of_the_format_text():
    spec = tiny_layout().arrays["activations.zarr/trained/mid.0/activations"]
    assert spec.key(2, 1).path == "activations.zarr/trained/mid.0/activations/c/2/0/0/0"
    assert record_path("sample", "trained", 12) == "shards/sample/trained/00012.json"
    path = probe_path("trained", "mid.0", 3, "depth", "none", 7)
    assert path == "probes/trained/mid.0/03.depth.none.7.safetensors"


@pytest.mark.parametrize("step", [0, 4, None])
def test_steps_count_from_one_to_the_last(step: int | None):
    spec = tiny_layout().arrays["activations.zarr/trained/mid.0/activations"]
    with pytest.raises(ValueError, match=r"step .* is not recorded; there are 1\.\.3"):
        spec.key(0, step)


def test_layout_survives_json_and_pickle():
    layout = tiny_layout()
    again = Layout.from_json(layout.to_json(), "here")
    assert again == layout
    assert again.to_json() == layout.to_json()
    assert pickle.loads(pickle.dumps(layout)) == layout
    assert hash(again) == hash(layout)


def test_another_format_version_is_refused():
    document = json.loads(tiny_layout().to_json()) | {"format": FORMAT_VERSION + 1}
    with pytest.raises(ValueError, match=f"format version {FORMAT_VERSION + 1}, this program"):
        Layout.from_json(json.dumps(document).encode(), "here")


@pytest.mark.parametrize("data", [b"", b"[]", b'{"format": 1}', b"\xff\xfe"])
def test_a_damaged_layout_is_refused(data: bytes):
    with pytest.raises(ValueError, match=r"here: layout\.json can't be read"):
        Layout.from_json(data, "here")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"samples": 0}, "layout.samples: 0"),
        ({"shard": 0}, "layout.shard: 0"),
        ({"codec": "zip"}, "layout.codec: 'zip' is not one of none, zstd"),
        ({"variants": ("a", "a")}, "a variant is named twice"),
        ({"variants": ("a/b",)}, "variant 'a/b'"),
        ({"variants": ("..",)}, r"variant '\.\.'"),
        ({"variants": ("@7",)}, "variant '@7'"),
        ({"sites": (SITES[0], SITES[0])}, "a site is named twice"),
        ({"tasks": {"depth": "float64"}}, "depth: dtype 'float64'"),
    ],
)
def test_wrong_layouts_are_refused(changes: dict, message: str):
    with pytest.raises(ValueError, match=message):
        tiny_layout(**changes)


def test_wrong_sites_are_refused():
    with pytest.raises(ValueError, match="at least 1"):
        SiteShape("mid.0", 0, 8)
    with pytest.raises(ValueError, match="dtype 'int8'"):
        SiteShape("mid.0", 4, 8, "int8")
    with pytest.raises(ValueError, match="site '-x'"):
        checked_name("site", "-x")


def test_differences_name_what_changed():
    old, new = tiny_layout(), tiny_layout(samples=12, sites=SITES[:1], codec="zstd")
    assert old.diff(new) == [
        "samples: stored 10, requested 12",
        "sites: only in the store mid.0, only requested nothing",
        "codec: stored 'none', requested 'zstd'",
    ]
    assert old.diff(tiny_layout()) == []


@pytest.mark.filterwarnings("ignore:Numcodecs codecs are not in the Zarr version 3")
@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("dtype", ["uint8", "float16", "float32"])
def test_metadata_equal_those_that_zarr_writes(codec: str, dtype: str):
    """zarr-python writes the same document for the same array."""
    if codec == "pcodec":
        pytest.importorskip("pcodec")
    layout = tiny_layout(codec=codec, tasks={"depth": dtype})
    spec = layout.arrays["labels.zarr/depth"]
    memory = zarr.storage.MemoryStore()
    zarr.create_array(
        memory, shape=spec.shape, chunks=spec.chunk, dtype=dtype, fill_value=spec.fill,
        dimension_names=spec.dims, **_zarr_codecs(codec, dtype),
    )  # fmt: skip
    expected = json.loads(memory._store_dict["zarr.json"].to_bytes())
    assert spec.metadata() == expected | {"attributes": dict(spec.attributes)}


def _zarr_codecs(codec: str, dtype: str) -> dict:
    from zarr.codecs import BloscCodec, Crc32cCodec, ZstdCodec

    small = np.dtype(dtype).itemsize == 1
    if codec == "pcodec" and not small:
        from zarr.codecs.numcodecs import PCodec

        configuration = codec_for(codec, dtype).documents[0]["configuration"]
        return {"serializer": PCodec(**configuration), "compressors": [Crc32cCodec()]}
    if codec.startswith("blosc"):
        coder = [BloscCodec(cname=codec.removeprefix("blosc-"), clevel=1)]
    else:
        coder = [] if codec == "none" else [ZstdCodec(level=1)]
    return {"compressors": [*coder, Crc32cCodec()]}


def test_groups_have_metadata_too():
    documents = tiny_layout().documents()
    for path in ("activations.zarr", "activations.zarr/trained", "latents.zarr/random"):
        assert json.loads(documents[f"{path}/zarr.json"])["node_type"] == "group"
