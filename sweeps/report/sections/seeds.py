"""The report's spread over seeds: of the randomised networks' permutations, and of the probes' initialisation."""

from __future__ import annotations

from sweeps.analysis import seeds
from sweeps.analysis.seeds import Spread
from sweeps.analysis.vocabulary import TASK_TITLES, variant_title
from sweeps.analysis.words import number
from sweeps.report.context import Context
from sweeps.report.page import Block, Paragraph, Section
from sweeps.report.sections.measures import tested_images
from sweeps.report.tables import Cell, Num, Table, interval

COLUMNS = ["Seeds", "Reported", "Mean", "Standard deviation", "Lowest", "Highest"]


def spread(context: Context) -> Section:
    """Both spreads, each if the run has more than one seed of it."""
    blocks: list[Block] = []
    scores = context.scores.values()
    if permutations := [one for s in scores for one in seeds.permutations(context.run, s)]:
        text = (
            "A randomised network is one of many possible permutations of the weights. Here it was sampled and probed "
            "with several seeds of the permutation. Every other number on this page uses the first seed listed, the "
            "configured one; the last column is the trained network’s gain over the seed that it beats by least."
        )
        rows = [
            [*_row(one, variant_title(one.label)), Num(number(one.trained, 3)), Num(interval(one.smallest_gain, 3))]
            for one in permutations
        ]
        caption = "Randomised networks with several seeds, mean at the last step"
        blocks += [
            Paragraph(text),
            Table(caption, ["Network", *COLUMNS, "Trained", "Smallest gain"], rows, images=tested_images(context)),
        ]
    if probes := [one for s in scores for one in seeds.probes(context.run, s)]:
        text = (
            "A seed draws the initial weights of a probe and the order of its samples. Here every probe was fitted "
            f"with several seeds. Every other number on this page uses seed {probes[0].seeds[0]}; this table shows "
            "what another seed would have changed. The best site is the one chosen with the reported seed."
        )
        caption = "The trained network’s probes with several seeds, last step, mean over test images"
        rows = [_row(one, one.label) for one in probes]
        blocks += [Paragraph(text), Table(caption, ["Score", *COLUMNS], rows, images=tested_images(context))]
    return Section("seeds", "How much do the seeds matter?", "Seeds", blocks)


def _row(one: Spread, name: str) -> list[Cell]:
    title = f"{TASK_TITLES[one.measure.task]}, {one.measure.label}: {name}"
    values = (one.scores[0], one.mean, one.std, min(one.scores), max(one.scores))
    return [title, ", ".join(map(str, one.seeds)), *(Num(number(v, 3)) for v in values)]
