"""The report's checks on the probes: how much a score depends on the optimiser and on the labeller."""

from __future__ import annotations

from sweeps.analysis.converged import references
from sweeps.analysis.vocabulary import TASK_TITLES
from sweeps.analysis.words import number
from sweeps.report.context import Context
from sweeps.report.links import site_link, source_link
from sweeps.report.page import Paragraph, Section
from sweeps.report.sections.experiments import at_step
from sweeps.report.tables import Num, Table, interval


def converged(context: Context) -> Section:
    """Trained probes compared with ridge and logistic regression solved to convergence."""
    pairs = references(context.run)
    if not pairs:
        return Section("converged")
    validated = next(iter(context.scores.values())).validated
    penalty = "chosen on validation images" if validated else "set to its smallest value (no validation images)"
    text = (
        "How much of a score is due to the optimiser? The same linear map, solved exactly: ridge regression in closed "
        f"form for depth and converged logistic regression for saliency, with a penalty {penalty}. A gain above 0 "
        "means that the reference beats the trained probe; below 0, the probe’s own loss and early stopping did better."
    )
    rows = [
        [
            f"{TASK_TITLES[p.measure.task]}, {p.measure.label}",
            site_link(p.site),
            str(p.step),
            Num(number(p.trained, 3)),
            Num(number(p.reference, 3)),
            Num(interval(p.gain, 3)),
        ]
        for p in pairs
    ]
    columns = ["Score", "Site", "Step", "Trained probe", "Converged reference", "Gain of the reference"]
    table = Table(
        "Trained probes and converged references on the same test images", columns, rows, images=pairs[0].images
    )
    blocks = [Paragraph(text), table, source_link("converged")]
    return Section("converged", "How much is due to the optimiser?", "Optimiser", blocks)


def truth(context: Context) -> Section:
    """Probes on noised renders with the renderer's labels, beside probes on samples with the labeller's."""
    found = context.families.get("truth")
    if not found:
        return Section("truth")
    text = (
        "Do the probes only repeat the labeller? Here images of the scenes world are rendered, encoded, noised to a "
        "step’s level and passed through the network once. Probes of the same protocol are fitted and scored on the "
        "renderer’s own depth and masks, without a labelling network. The images differ from the samples, and depth "
        "is in units of their own standard deviation, so compare the pattern of the two columns rather than their "
        "values."
    )
    rows = [
        [
            f"{TASK_TITLES[task]}, {scores.measure.label}",
            site_link(site.name),
            str(step),
            at_step(scores, site.name, step),
            float(scores.floor[i]),
            at_step(context.scores.get(task), site.name, step),
        ]
        for task, scores in found.items()
        for i, site in enumerate(scores.sites)
        for step in scores.steps
    ]
    columns = ["Score", "Site", "Step", "Renders, true labels", "Floor of the renders", "Samples, labeller"]
    caption = "Probes scored on the renderer’s true labels and on the labeller’s labels"
    table = Table(caption, columns, rows, images=next(iter(found.values())).images)
    blocks = [Paragraph(text), table, source_link("truth")]
    return Section("truth", "Compared with the truth, without a labeller", "Truth", blocks)
