"""The report's verdict on the paper's five claims."""

from __future__ import annotations

from html import escape

from sweeps.analysis.claims import SUPPORTED
from sweeps.report.context import Context
from sweeps.report.html import Section, folded, paragraph
from sweeps.report.tables import Raw, table


def claims(context: Context) -> Section:
    """Five claims, each with its rule, verdict and evidence."""
    if not context.scores:
        return Section("claims", "", "", "")
    held = sum(c.verdict == SUPPORTED for c in context.claims)
    text = paragraph(
        f"The paper claims five things of the model that it studied. Of {escape(context.model)}, this run supports "
        f"<strong>{held} of {len(context.claims)}</strong>. The rules were fixed before any number was seen and read "
        "the tables alone; a claim that fails here is a fact about this model and not about the paper’s."
    )
    rows = [[c.name, Raw(f"<strong>{c.verdict}</strong><br>{escape(c.evidence)}")] for c in context.claims]
    found = table("The paper’s claims and this run", ["Claim", "Verdict and evidence"], rows, kind="text claims")
    printed = [[c.name, c.rule] for c in context.claims]
    rules = table("The rule of each claim", ["Claim", "Rule"], printed, kind="text claims")
    body = text + found + folded("The rules", rules)
    return Section("claims", "Which of the paper’s claims hold here", "Claims", body)
