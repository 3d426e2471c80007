"""The report's checks on the probes: how much of a score is the optimiser's, and the labeller's."""

from __future__ import annotations

from sweeps.analysis import converged as findings_checks
from sweeps.report.context import Context
from sweeps.report.figures.probes import TASK_TITLES
from sweeps.report.html import Section, paragraph
from sweeps.report.links import cells_link, site_link
from sweeps.report.sections.experiments import at_step
from sweeps.report.tables import Num, interval, number, table


def converged(context: Context) -> Section:
    """Trained probes against ridge and logistic regression solved to the end."""
    pairs = findings_checks.references(context.run)
    if not pairs:
        return Section("converged", "", "", "")
    validated = next(iter(context.scores.values())).validated
    penalty = "a penalty chosen on validation images" if validated else "the least penalty (no validation images)"
    text = paragraph(
        "How much of a score is the optimiser’s? The same linear map solved without one: ridge regression in closed "
        "form for depth, logistic regression run to its minimum for saliency, each with "
        f"{penalty}. A gain above 0 is what the reference reaches beyond the trained probe; below 0, the "
        "probe’s own loss and early stopping did better."
    )
    rows = [
        [f"{TASK_TITLES[p.measure.task]}, {p.measure.label}", site_link(p.site), str(p.step),
         Num(number(p.trained, 3)), Num(number(p.reference, 3)), Num(interval(p.gain, 3))]
        for p in pairs
    ]  # fmt: skip
    columns = ["Score", "Site", "Step", "Trained probe", "Converged reference", "Gain of the reference"]
    body = text + table("Trained probes and converged references, the same test images", columns, rows)
    return Section("converged", "How much is the optimiser’s?", "Optimiser", body + cells_link("converged"))


def truth(context: Context) -> Section:
    """Probes on noised renders against the renderer, beside those on samples against the labeller."""
    found = context.families.get("truth")
    if not found:
        return Section("truth", "", "", "")
    text = paragraph(
        "Do the probes only repeat the labeller? Here pictures of the world are rendered, encoded, noised to a "
        "step’s level and passed through the network once; probes of the same protocol are fitted and scored on the "
        "renderer’s own depth and masks, with no labelling network between. The images are others than the samples, "
        "and depth is in units of their own spread, so compare the two columns for their pattern."
    )
    rows = [
        [f"{TASK_TITLES[task]}, {scores.measure.label}", site_link(site.name), str(step),
         at_step(scores, site.name, step), float(scores.floor[i]), at_step(context.scores.get(task), site.name, step)]
        for task, scores in found.items()
        for i, site in enumerate(scores.sites)
        for step in scores.steps
    ]  # fmt: skip
    columns = ["Score", "Site", "Step", "Renders, truth", "Floor of the truth", "Samples, labels"]
    body = text + table("Probes against the renderer’s truth and against labels", columns, rows)
    return Section("truth", "Against the truth, without a labeller", "Truth", body + cells_link("truth"))
