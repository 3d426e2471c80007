"""The report's scene explorer: data for its script, and strips for readers without scripts."""

from __future__ import annotations

from typing import Any

import matplotlib
import numpy as np
from PIL import Image

from sweeps.analysis.scores import Scores
from sweeps.analysis.vocabulary import TASK_TITLES
from sweeps.report import thumbnails
from sweeps.report.context import Context
from sweeps.report.gallery.explorer import Exploration, Explored
from sweeps.report.gallery.probes import STRIP, pick
from sweeps.report.page import Explorer, Paragraph, Section, Strip
from sweeps.report.thumbnails import SCALES, data_url

FRAME = 128
"""longest side of a clean estimate in pixels"""


def explorer(context: Context) -> Section:
    """Choose an image, a site and a step; see the clean estimate and what the probes read."""
    shown = context.exploration
    if shown is None:
        return Section("explorer")
    text = (
        "One probe for each site and step reads the object and the depth from the activations, while the image is "
        "still being made. Choose an image and a site, and move through the steps."
    )
    return Section(
        "explorer", "Watch a scene appear", "Explorer", [Paragraph(text), Explorer(_data(context), _static(shown))]
    )


def _static(shown: Exploration) -> list[Strip]:
    """The last image at some steps, for readers without scripts; the page begins with the first."""
    image, steps, strips = shown.images[-1], pick(shown.steps, STRIP), []
    if image.estimates:
        near = dict.fromkeys(min(image.estimates, key=lambda s: abs(s - step)) for step in steps)
        photos = [thumbnails.photo(image.estimates[s], f"Clean estimate, step {s}", f"step {s}", 128) for s in near]
        photos.append(thumbnails.photo(image.image, "Finished image", "finished", 128))
        strips.append(Strip(f"“{image.caption}”: clean estimate", photos, "strip seven"))
    for task, site in shown.best.items():
        maps = [(image.maps[task, site.name, s], f"step {s}") for s in steps if (task, site.name, s) in image.maps]
        pictures = [
            thumbnails.map_picture(values, task, image.limits[task], f"{TASK_TITLES[task]}: {words}", words, 64)
            for values, words in [*maps, (image.labels[task], "label")]
        ]
        strips.append(Strip(f"{TASK_TITLES[task]}, probe at {site.name}", pictures, "strip seven"))
    return strips


def _data(context: Context) -> dict[str, Any]:
    """Everything that the script reads, as JSON."""
    shown = context.exploration
    assert shown is not None
    tile = [max(s.shape[i] for s in next(iter(shown.images)).maps.values()) for i in (0, 1)]
    sizes = {name: values.shape for (_, name, _), values in shown.images[0].maps.items()}
    first = next(iter(context.scores.values()))
    return {
        "steps": shown.steps,
        "tile": tile,
        "names": [s.name for s in first.sites],
        "all": first.steps,
        "sites": [{"name": s.name, "grid": sizes[s.name]} for s in shown.sites],
        "tasks": [_task(context.scores[t], shown, site.name) for t, site in shown.best.items()],
        "images": [_image(image, shown, tile) for image in shown.images],
    }


def _task(scores: Scores, shown: Exploration, best: str) -> dict[str, Any]:
    """Mean scores of the sites that can be chosen, and the colours of the maps."""
    chosen = [i for i, s in enumerate(scores.sites) if s in shown.sites]
    steps = [scores.steps.index(s) for s in shown.steps]
    means = scores.means[scores.variant_index("trained")][np.ix_(chosen, steps)]
    colours = matplotlib.colormaps[SCALES[scores.measure.task]](np.linspace(0, 1, 64))[:, :3]
    return {
        "key": scores.measure.task,
        "title": TASK_TITLES[scores.measure.task],
        "label": scores.measure.label,
        "better": "higher" if scores.measure.higher else "lower",
        "n": scores.images,
        "best": [s.name for s in shown.sites].index(best),
        "means": _rounded(means),
        "every": _rounded(scores.means[scores.variant_index("trained")]),
        "floor": _rounded(scores.floor[chosen]),
        "oracle": _rounded(scores.oracle_means[chosen]),
        "colours": "".join(f"{round(255 * v):02x}" for colour in colours for v in colour),
    }


def _rounded(values: np.ndarray) -> Any:
    """Nested lists of numbers with three decimals, None where there is none."""
    if values.ndim > 1:
        return [_rounded(row) for row in values]
    return [round(float(v), 3) if np.isfinite(v) else None for v in values]


def _image(image: Explored, shown: Exploration, tile: list[int]) -> dict[str, Any]:
    """Pictures of one image: frames side by side, and the maps of all sites and steps in one picture for each task."""
    steps = [s for s in shown.steps if s in image.estimates]
    frames = [_frame(image.estimates[s]) for s in steps]
    labels = {
        t: thumbnails.map_picture(v, t, image.limits[t], "", longest=FRAME).address for t, v in image.labels.items()
    }
    return {
        "caption": image.caption,
        "sample": image.sample,
        "finished": thumbnails.photo(image.image, "", longest=FRAME).address,
        "frames": data_url(np.concatenate(frames, axis=1), "JPEG", quality=82) if frames else "",
        "decoded": steps,
        "labels": labels,
        "maps": {t: _atlas(image, shown, t, tile) for t in shown.best},
    }


def _frame(pixels: np.ndarray) -> np.ndarray:
    picture = Image.fromarray(np.ascontiguousarray(pixels))
    picture.thumbnail((FRAME, FRAME), Image.Resampling.LANCZOS)
    return np.asarray(picture)


def _atlas(image: Explored, shown: Exploration, task: str, tile: list[int]) -> str:
    """A grey picture with a tile for each site (across) and step (down), values as shares of the colour scale."""
    rows, columns = tile
    atlas = np.zeros((rows * len(shown.steps), columns * len(shown.sites)), np.uint8)
    low, high = image.limits[task]
    for i, site in enumerate(shown.sites):
        for j, step in enumerate(shown.steps):
            values = image.maps.get((task, site.name, step))
            if values is not None:
                share = np.clip((values - low) / max(high - low, 1e-9), 0, 1)
                top, left = j * rows, i * columns
                atlas[top : top + values.shape[0], left : left + values.shape[1]] = (255 * share).round()
    return data_url(atlas, "PNG", optimize=True)
