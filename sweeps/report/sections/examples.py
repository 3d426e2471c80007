"""The report's pictures: generated images, and test images seen through the probes."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

import numpy as np

from probing.diffusion.variants import OTHER_SEED
from sweeps.report import thumbnails
from sweeps.report.context import Context
from sweeps.report.figures.probes import TASK_TITLES, variant_title
from sweeps.report.gallery.probes import Example, Reading
from sweeps.report.html import Section, paragraph, picture
from sweeps.report.tables import number

NOUNS = {"saliency": "the salient object", "depth": "depth"}


def contact_strip(context: Context) -> Section:
    """Generated images with their captions."""
    body = ""
    for contact in context.contacts:
        trained = contact.variant == "trained"
        if not trained:
            body += f"<h3>{_contact_title(contact.variant)}</h3>"
        cells = [
            picture(
                thumbnails.photo(pixels),
                f"Generated image: {words}" if trained else f"Generated image, {variant_title(contact.variant)}",
                escape(words) if trained else "",
            )
            for pixels, words in zip(contact.images, contact.captions, strict=True)
        ]
        body += f'<div class="photos{"" if trained else " few"}">{"".join(cells)}</div>'
    if body:
        body = paragraph("The first test images in order of sampling, not selected.") + body
    return Section("images", "What the model paints", "Images", body)


def _contact_title(variant: str) -> str:
    if variant == OTHER_SEED:
        return "The trained network, same prompts and other seeds"
    return f"The {escape(variant_title(variant))} network, same prompts and seeds"


def examples(context: Context) -> Section:
    """Test images with labels and probe predictions."""
    if not context.examples:
        return Section("examples", "", "", "")
    sites = {r.task: r.site for r in context.examples[0].readings}
    named = " and ".join(f"<code>{s.name}</code> for {NOUNS[t]}" for t, s in sites.items())
    text = paragraph(
        f"Predictions of the best site’s probes ({named}), one probe per "
        "step, at the site’s own resolution. The images stand at fixed "
        "percentiles of the test score, so good and bad cases both appear. Under each map stands "
        "its score on this image."
    )
    return Section(
        "examples",
        "Seen through the probes",
        "Examples",
        text + _colour_key(list(sites)) + "".join(_example(e) for e in context.examples),
    )


def _colour_key(tasks: Sequence[str]) -> str:
    words = {"saliency": ("background", "object"), "depth": ("far", "near")}
    keys = ""
    for task in tasks:
        ramp = thumbnails.map_picture(np.linspace(0, 1, 64)[None], task, 0, 1)
        low, high = words[task]
        keys += f'<span>{low}<img class="scale" src="{ramp}" alt="to">{high}</span>'
    return f'<p class="key">{keys}</p>'


def _example(example: Example) -> str:
    words = (
        f"“{escape(example.caption)}”"
        f' <span class="note">sample {example.sample}, '
        f"at the {example.percentile}th percentile</span>"
    )
    readings = "".join(_reading_strip(r) for r in example.readings)
    return f'<article class="example"><h3>{words}</h3>{_picture_strip(example)}{readings}</article>'


def _picture_strip(example: Example) -> str:
    alt = f"Generated image: {example.caption}"
    return _strip("Image", [picture(thumbnails.photo(example.image, 192), alt, "finished image")])


def _reading_strip(reading: Reading) -> str:
    def cell(values: np.ndarray, alt: str, caption: str) -> str:
        address = thumbnails.map_picture(values, reading.task, reading.low, reading.high)
        return picture(address, alt, caption, map_like=True)

    label = TASK_TITLES[reading.task]
    cells = [cell(reading.label, f"{label}: label", "label")]
    for step, values in reading.predictions.items():
        score = number(reading.scores[step])
        cells.append(cell(values, f"{label}: prediction at step {step}, score {score}", f"step {step}<br>{score}"))
    if reading.control is not None:
        score = number(reading.control_score)
        alt = f"{label}: randomised network, score {score}"
        cells.append(cell(reading.control, alt, f"randomised<br>{score}"))
    return _strip(f"{label}, {reading.site.name}", cells)


def _strip(name: str, cells: Sequence[str]) -> str:
    return f'<p class="strip-name">{escape(name)}</p><div class="strip">{"".join(cells)}</div>'
