"""Sampling with capture against sampling alone, and what codecs do to real activations; on the scenes model."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from numpy.typing import NDArray

from probing.dataset import prompts
from probing.diffusion import model
from probing.diffusion.capture import capture
from probing.diffusion.families.base import LatentDiffusion
from probing.diffusion.sampling import sample
from storage import Store
from sweeps.bench.paired import Row, row, timed_pairs
from sweeps.bench.store import compare_codecs
from sweeps.config.load import load
from sweeps.config.schema import Config
from sweeps.runtime.run import layout, model_info


def _one_shard(count: int) -> tuple[Config, LatentDiffusion, list[str], list[int]]:
    """Settings, model, prompts and seeds of one shard of the scenes model."""
    config = load("scenes", [f"prompts.count={count}", f"sampling.shard={count}"])
    found = prompts.read(config.prompts).prompts
    return config, model.load(config.model), [prompt.text for prompt in found], [prompt.seed for prompt in found]


def bench_capture(count: int = 16, pairs: int = 5) -> list[Row]:
    """Row `capture_over_sampling`: one shard of `count` samples with capture and writing, against sampling alone."""
    config, network, texts, seeds = _one_shard(count)
    guidance = config.sampling.guidance
    with tempfile.TemporaryDirectory() as folder:
        store = Store.create(str(Path(folder) / "store"), layout(config, model_info(config), count))

        def write(site: str, step: int, values: NDArray) -> None:
            store.write_activation("trained", site, step, 0, values)

        latents = partial(store.write_latents, "trained", 0)
        timed = timed_pairs(
            lambda: capture(network, texts, seeds, network.sites(), write, latents, guidance=guidance),
            lambda: sample(network, texts, seeds, guidance=guidance),
            pairs,
        )
    return [row("capture_over_sampling", "sampling, recording and writing", "sampling", timed)]


def bench_codecs(count: int = 16, steps: Sequence[int] = (1, 8, 15), repeats: int = 3) -> list[Row]:
    """Rows `codec_NAME` over activations of the scenes model: all sites, the given steps, one shard.

    `ratio` is raw bytes over stored bytes, both under `bytes`; `seconds` are those of writing and of reading back, one
    thread, disk excluded, the best of the repeats, so that there are no pairs.
    """
    config, network, texts, seeds = _one_shard(count)
    chunks: dict[str, NDArray] = {}

    def keep(site: str, step: int, values: NDArray) -> None:
        if step in steps:
            chunks[f"{site}/{step}"] = values.copy()

    capture(network, texts, seeds, network.sites(), keep, guidance=config.sampling.guidance)
    by_codec: dict[str, list[Row]] = {}
    for entry in compare_codecs(dict(sorted(chunks.items())), repeats):
        by_codec.setdefault(entry["codec"], []).append(entry | {"bytes": chunks[entry["what"]].nbytes})
    found = []
    for codec, entries in by_codec.items():
        raw, stored = sum(e["bytes"] for e in entries), sum(e["bytes"] / e["ratio"] for e in entries)
        seconds = [sum(e["bytes"] / e[way] for e in entries) for way in ("write", "read")]
        found.append({
            "what": f"codec_{codec}", "ratio": raw / stored, "of": "raw bytes", "to": "stored bytes",
            "seconds": seconds, "pairs": [], "bytes": [raw, round(stored)],
        })  # fmt: skip
    return found
