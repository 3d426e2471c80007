"""The curation page: every sample with its labels over it, to be kept or dropped by hand; one file, no network."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from html import escape
from typing import Any

import numpy as np
from matplotlib import colormaps
from numpy.typing import NDArray
from PIL import Image

from probing.dataset.curation import FAILED, Measures, drop_reason
from probing.dataset.manual_decisions import COLUMNS, Choice
from sweeps.curation.template import PAGE
from sweeps.runtime.run import Run, decisions_digest
from sweeps.stages import curate

PATH = "curation/index.html"
SIDE = 320
"""pixels of the longer side of an image on the page, at most"""
LABEL_SIDE = 160
"""the same of a label"""
QUALITY = 80
MASK_COLOUR = (255, 0, 160)


@dataclass(frozen=True, eq=False)
class Shown:
    """One sample on the page."""

    sample: int
    seed: int
    prompt: str
    rule: str
    """why the rules drop it, or an empty string"""
    foreground: float
    image: NDArray[np.uint8]
    """(H, W, 3)"""
    mask: NDArray[np.bool_]
    """(H, W)"""
    depth: NDArray[np.float32] | None
    """(H, W), any units; None where depth is not labelled yet"""


def build(title: str, identity: str, samples: Iterable[Shown], choices: Mapping[int, Choice]) -> str:
    """The page's HTML; `identity` names the run and its decisions in the browser's memory."""
    data = {
        "id": identity,
        "columns": COLUMNS,
        "choices": {i: {"keep": c.keep, "reason": c.reason} for i, c in choices.items()},
        "samples": [_entry(shown) for shown in samples],
    }
    text = json.dumps(data, ensure_ascii=False).replace("<", "\\u003c")
    return PAGE.replace("__TITLE__", escape(title)).replace("__DATA__", text, 1)


def _entry(shown: Shown) -> dict[str, Any]:
    image = Image.fromarray(shown.image)
    image.thumbnail((SIDE, SIDE))
    return {
        "i": shown.sample,
        "seed": shown.seed,
        "prompt": shown.prompt,
        "rule": shown.rule,
        "foreground": round(shown.foreground, 4),
        "image": _uri(image, "jpeg", quality=QUALITY),
        "mask": _uri(_mask(shown.mask), "png", transparency=0),
        "depth": "" if shown.depth is None else _uri(_depth(shown.depth), "jpeg", quality=QUALITY),
    }


def _uri(image: Image.Image, kind: str, **options: Any) -> str:
    held = io.BytesIO()
    image.save(held, kind, **options)
    return f"data:image/{kind};base64,{base64.b64encode(held.getvalue()).decode()}"


def _small(values: NDArray) -> NDArray:
    """Every n-th row and column, so that the longer side is at most LABEL_SIDE."""
    step = -(-max(values.shape) // LABEL_SIDE)
    return values[::step, ::step]


def _mask(mask: NDArray[np.bool_]) -> Image.Image:
    """Two colours; the first is transparent."""
    image = Image.fromarray(_small(mask).astype(np.uint8), "L").convert("P")
    image.putpalette((0, 0, 0, *MASK_COLOUR))
    return image


def _depth(depth: NDArray) -> Image.Image:
    """Near is bright; the image's own range."""
    small = np.nan_to_num(_small(depth).astype(np.float64))
    low, high = np.percentile(small, (1, 99))
    scaled = ((small - low) / max(high - low, 1e-9)).clip(0, 1)
    return Image.fromarray((colormaps["magma"](scaled)[..., :3] * 255).astype(np.uint8))


def write(run: Run) -> str:
    """Writes the page of a run into its store and tells its path. Images are read shard by shard."""
    decided = decisions_digest(run.store)
    html = build(
        f"Curation of {run.config.name}",
        f"{run.hashes.label} {decided}",
        _shown(run, curate.measures(run)),
        curate.choices_of(run),
    )
    run.store.put(PATH, html.encode())
    return f"{run.config.output.rstrip('/')}/{PATH}"


def _shown(run: Run, measures: Mapping[int, Measures]) -> Iterator[Shown]:
    store = run.store
    table = store.samples().to_pydict()
    shards = sorted({sample // store.layout.shard for sample in measures})
    for shard in shards:
        samples = list(store.layout.shard_samples(shard))
        images, depth = store.read_images("trained", samples), curate.depth_labels(run, samples)
        masks = store.read_labels("saliency", samples) > run.config.labels.threshold
        for k, i in enumerate(samples):
            found = measures.get(i)
            rule = drop_reason(found, run.config.curation) if found else FAILED
            share = found.foreground if found else 0.0
            far = None if depth is None else depth[k]
            yield Shown(i, table["seed"][i], table["prompt"][i], rule, share, images[k], masks[k], far)
