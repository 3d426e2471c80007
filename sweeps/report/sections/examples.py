"""The report's pictures: generated images, and test images with the predictions of the probes."""

from __future__ import annotations

import numpy as np
from markupsafe import Markup

from probing.diffusion.variants import OTHER_SEED
from sweeps.analysis.vocabulary import TASK_NOUNS, TASK_TITLES, variant_title
from sweeps.analysis.words import number
from sweeps.report import thumbnails
from sweeps.report.context import Context
from sweeps.report.gallery.probes import Reading
from sweeps.report.links import code
from sweeps.report.page import Block, ColourKey, Heading, Paragraph, Scale, Section, Strip, StripGroup

ENDS = {"saliency": ("background", "object"), "depth": ("far", "near")}
"""meaning of the two ends of each task's colour scale"""


def contact_strip(context: Context) -> Section:
    """Generated images with their captions."""
    if not context.contacts:
        return Section("images")
    blocks: list[Block] = [Paragraph("The first test images in order of sampling, not selected.")]
    for contact in context.contacts:
        pairs = zip(contact.images, contact.captions, strict=True)
        if contact.variant == "trained":
            cells = [thumbnails.photo(pixels, f"Generated image: {words}", words) for pixels, words in pairs]
            blocks.append(Strip("", cells, "photos"))
            continue
        name = variant_title(contact.variant)
        title = f"The {name} network, same prompts and seeds"
        if contact.variant == OTHER_SEED:
            title = "The trained network, same prompts and other seeds"
        cells = [thumbnails.photo(pixels, f"Generated image, {name}") for pixels, _ in pairs]
        blocks += [Heading(title), Strip("", cells, "photos few")]
    return Section("images", "What the model generates", "Images", blocks)


def examples(context: Context) -> Section:
    """Test images with labels and probe predictions."""
    if not context.examples:
        return Section("examples")
    sites = {r.task: r.site for r in context.examples[0].readings}
    named = Markup(" and ").join(
        Markup("{} for {}").format(code(site.name), TASK_NOUNS[task]) for task, site in sites.items()
    )
    text = Markup(
        "Predictions of the best site’s probes ({}), one probe per step, at the site’s own resolution. The images lie "
        "at fixed percentiles of the test score, so both good and bad cases appear. The number under each map is its "
        "score on this image."
    ).format(named)
    ramp = np.linspace(0, 1, 64)[None]
    key = ColourKey([Scale(*ENDS[t], thumbnails.map_picture(ramp, t, (0, 1), "to")) for t in sites])
    shown = [
        StripGroup(
            f"“{e.caption}”",
            f"sample {e.sample}, at the {e.percentile}th percentile",
            [
                Strip("Image", [thumbnails.photo(e.image, f"Generated image: {e.caption}", "finished image", 192)]),
                *(_reading_strip(r) for r in e.readings),
            ],
        )
        for e in context.examples
    ]
    return Section("examples", "Seen through the probes", "Examples", [Paragraph(text), key, *shown])


def _reading_strip(reading: Reading) -> Strip:
    """Label, predictions by step, and the randomised network's prediction of one task."""
    title = TASK_TITLES[reading.task]
    maps = [(reading.label, "label", "label")]
    for step, values in reading.predictions.items():
        score = number(reading.scores[step])
        maps.append((values, f"prediction at step {step}, score {score}", f"step {step}\n{score}"))
    if reading.control is not None:
        score = number(reading.control_score)
        maps.append((reading.control, f"randomised network, score {score}", f"randomised\n{score}"))
    pictures = [
        thumbnails.map_picture(values, reading.task, reading.limits, f"{title}: {alt}", caption)
        for values, alt, caption in maps
    ]
    return Strip(f"{title}, {reading.site.name}", pictures)
