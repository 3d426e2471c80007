"""The report's spread over seeds: of the randomised networks' permutations, and of the probes' start and order."""

from __future__ import annotations

from sweeps.analysis import seeds
from sweeps.analysis.seeds import Permutations, Spread
from sweeps.report.context import Context
from sweeps.report.figures.probes import TASK_TITLES, variant_title
from sweeps.report.html import Section, paragraph
from sweeps.report.tables import Num, interval, number, table

COLUMNS = ["Seeds", "Reported", "Mean", "Standard deviation", "Lowest", "Highest"]


def spread(context: Context) -> Section:
    """Both spreads, each where a run has more than one seed."""
    body = _permutations(context) + _probes(context)
    return Section("seeds", "How much do the seeds matter?", "Seeds", body)


def _permutations(context: Context) -> str:
    found = [one for s in context.scores.values() for one in seeds.permutations(context.run, s)]
    if not found:
        return ""
    text = paragraph(
        "A randomised network is one shuffle of the weights among many. Here it was sampled and probed with several "
        "seeds of the shuffle. Every other number of this page is of the seed that stands first, that of the "
        "settings; the last column is the trained network’s gain over the seed that it beats by least."
    )
    rows = [[*_row(one, variant_title(one.label)), Num(number(one.trained, 3)), _gain(one)] for one in found]
    columns = ["Network", *COLUMNS, "Trained", "Smallest gain"]
    return text + table("Randomised networks under several seeds, decoder mean at the last step", columns, rows)


def _gain(one: Permutations) -> Num:
    return Num(interval(one.smallest_gain, 3))


def _probes(context: Context) -> str:
    found = [one for s in context.scores.values() for one in seeds.probes(context.run, s)]
    if not found:
        return ""
    reported = found[0].seeds[0]
    text = paragraph(
        "A probe’s start and the order of its samples are drawn with a seed. Here every probe was fitted with several. "
        f"Every other number of this page is of seed {reported}; this table shows what another would have changed. "
        "The best site is the one chosen with the reported seed."
    )
    rows = [_row(one, one.label) for one in found]
    caption = "The trained network’s probes under several seeds, last step, mean over test images"
    return text + table(caption, ["Score", *COLUMNS], rows)


def _row(one: Spread, what: str) -> list:
    title = f"{TASK_TITLES[one.measure.task]}, {one.measure.label}: {what}"
    values = (one.scores[0], one.mean, one.std, min(one.scores), max(one.scores))
    return [title, ", ".join(map(str, one.seeds)), *(Num(number(v, 3)) for v in values)]
