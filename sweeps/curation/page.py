"""The curation page: every sample with its labels, to be kept or dropped manually; one file, no network."""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from numpy.typing import NDArray
from PIL import Image

from probing.dataset.curation import FAILED, Measures, drop_reason
from probing.dataset.manual_decisions import COLUMNS, Choice
from sweeps.report.gallery.probes import map_limits
from sweeps.report.thumbnails import Picture, colour_map, photo
from sweeps.runtime.run import Run, decisions_digest
from sweeps.stages import curate

PATH = "curation/index.html"
SIDE = 320
"""maximum length in pixels of an image's longer side on the page"""
LABEL_SIDE = 160
"""the same for a label"""
MASK_COLOUR = (255, 0, 160)


@dataclass(frozen=True, eq=False)
class Shown:
    """One sample on the page."""

    sample: int
    seed: int
    prompt: str
    rule: str
    """why the curation rules drop it, or an empty string"""
    foreground: float
    """share of foreground pixels, 0 to 1"""
    image: NDArray[np.uint8]
    """(H, W, 3)"""
    mask: NDArray[np.bool_]
    """(H, W)"""
    depth: NDArray[np.float32] | None
    """(H, W), any units; None if depth is not labelled yet"""


def build(title: str, identity: str, samples: Iterable[Shown], choices: Mapping[int, Choice]) -> str:
    """The page's HTML; `identity` names the run and its decisions in the browser's storage."""
    data = {
        "id": identity,
        "columns": COLUMNS,
        "choices": {i: {"keep": c.keep, "reason": c.reason} for i, c in choices.items()},
        "samples": [_entry(shown) for shown in samples],
    }
    environment = Environment(loader=PackageLoader("sweeps.curation", ""), autoescape=True, undefined=StrictUndefined)
    return environment.get_template("template.html").render(title=title, data=data)


def _entry(shown: Shown) -> dict[str, object]:
    """A sample as the page's script expects it; pictures as data URLs."""
    # A palette of two colours, of which the first is transparent.
    mask = Image.fromarray(_thin(shown.mask).astype(np.uint8), "L").convert("P")
    mask.putpalette((0, 0, 0, *MASK_COLOUR))
    encoded = io.BytesIO()
    mask.save(encoded, "png", transparency=0)
    depth = ""
    if shown.depth is not None:
        # Near is bright, and every image has a range of its own.
        values = np.nan_to_num(_thin(shown.depth).astype(np.float64))
        depth = photo(colour_map(values, "depth", *map_limits("depth", values)), "").address
    return {
        "i": shown.sample,
        "seed": shown.seed,
        "prompt": shown.prompt,
        "rule": shown.rule,
        "foreground": round(shown.foreground, 4),
        "image": photo(shown.image, "", longest=SIDE).address,
        "mask": Picture(encoded.getvalue(), "png", "").address,
        "depth": depth,
    }


def _thin(values: NDArray[np.generic]) -> NDArray[np.generic]:
    """Every n-th row and column, so that the longer side has at most LABEL_SIDE pixels."""
    step = -(-max(values.shape) // LABEL_SIDE)
    return values[::step, ::step]


def write(run: Run) -> str:
    """Write the page of a run into its store; returns its path. Images are read shard by shard."""
    identity = f"{run.hashes.label} {decisions_digest(run.store)}"
    samples = shown_samples(run, curate.measures(run))
    html = build(f"Curation of {run.config.name}", identity, samples, curate.choices_of(run))
    run.store.put(PATH, html.encode())
    return f"{run.config.output.rstrip('/')}/{PATH}"


def shown_samples(run: Run, measures: Mapping[int, Measures]) -> Iterator[Shown]:
    """Every sample of the shards that `measures` touches, with its labels and the rule that drops it."""
    store = run.store
    table = store.samples().to_pydict()
    for shard in sorted({sample // store.layout.shard for sample in measures}):
        samples = list(store.layout.shard_samples(shard))
        images, depth = store.read_images("trained", samples), curate.depth_labels(run, samples)
        masks = store.read_labels("saliency", samples) > run.config.labels.threshold
        for k, i in enumerate(samples):
            measured = measures.get(i)
            yield Shown(
                i,
                table["seed"][i],
                table["prompt"][i],
                drop_reason(measured, run.config.curation) if measured else FAILED,
                measured.foreground if measured else 0.0,
                images[k],
                masks[k],
                None if depth is None else depth[k],
            )
