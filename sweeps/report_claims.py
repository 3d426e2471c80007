"""The report's verdict on the paper's five claims."""

from __future__ import annotations

from html import escape

from sweeps.claims import SUPPORTED
from sweeps.report_context import Context
from sweeps.report_html import Section, paragraph
from sweeps.tables_view import Raw, table


def claims(context: Context) -> Section:
    """Five claims, each with its rule, verdict and evidence."""
    if not context.scores:
        return Section("claims", "", "", "")
    held = sum(c.verdict == SUPPORTED for c in context.claims)
    text = paragraph(
        f"The paper claims five things about Stable Diffusion v1.4. Of {escape(context.model)}, this run supports "
        f"<strong>{held} of {len(context.claims)}</strong>. The rules were fixed before any number was seen and read "
        "the tables alone; a claim that fails here is a fact about this model and not about the paper’s."
    )
    rows = [[c.name, Raw(f"<strong>{c.verdict}</strong>"), c.evidence, c.rule] for c in context.claims]
    columns = ["Claim", "Verdict", "Evidence", "Rule"]
    found = table("The paper’s claims and this run", columns, rows, kind="text claims")
    return Section("claims", "Which of the paper’s claims hold here", "Claims", text + found)
