"""What a run found in a few lines of plain text, for the terminal."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from probing.statistics import Interval
from sweeps.analysis import summary
from sweeps.analysis.scores import Scores
from sweeps.analysis.vocabulary import TASK_NOUNS
from sweeps.analysis.words import number
from sweeps.report.context import Context


@dataclass(frozen=True)
class Ending:
    """Findings and verdicts; plain values, kept beside the report so that a second run shows them again."""

    findings: dict[str, str]
    """what is decoded -> where best and how well"""
    claims: list[tuple[str, str]]
    """verdict and name of each of the paper's claims"""


def ending(context: Context) -> Ending:
    """The findings and claims of a report."""
    findings = {}
    for task, scores in context.scores.items():
        if (best := summary.best_site(scores)) is not None:
            findings[TASK_NOUNS[task]] = _finding(context, scores, best)
    return Ending(findings, [(claim.verdict, claim.name) for claim in context.claims] if findings else [])


def _finding(context: Context, scores: Scores, best: int) -> str:
    measure, site = scores.measure, scores.sites[best].name
    text = f"best at {site}, {measure.label} {_with_bounds(summary.final(scores, 'trained', site))}"
    text += f"; {scores.floor[best]:.2f} without activations, {scores.oracle_means[best]:.2f} at most on its grid"
    lead = context.headlines.get(measure.task)
    if lead is not None and np.isfinite(lead.gain.estimate):
        text += f"; gain over the best baseline {_with_bounds(lead.gain)}"
    return text


def _with_bounds(value: Interval) -> str:
    ends = f" ({number(value.low)} to {number(value.high)})" if np.isfinite(value.low) else ""
    return f"{number(value.estimate)}{ends}"
