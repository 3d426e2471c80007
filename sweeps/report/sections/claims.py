"""The report's verdicts on the paper's five claims."""

from __future__ import annotations

from markupsafe import Markup

from sweeps.analysis.claims import SUPPORTED
from sweeps.report.context import Context
from sweeps.report.page import Folded, Paragraph, Section
from sweeps.report.tables import Table


def claims(context: Context) -> Section:
    """Five claims, each with its rule, verdict and evidence."""
    if not context.scores:
        return Section("claims")
    supported = sum(c.verdict == SUPPORTED for c in context.claims)
    text = Markup(
        "The paper makes five claims about the model that it studied. For {}, this run supports <strong>{} of {}"
        "</strong>. The rules are the same for every run and read only the results tables. A claim that "
        "fails here fails for this model and this set-up; it says nothing about the paper’s model."
    ).format(context.model, supported, len(context.claims))
    rows = [[c.name, Markup("<strong>{}</strong><br>{}").format(c.verdict, c.evidence)] for c in context.claims]
    verdicts = Table("The paper’s claims and this run", ["Claim", "Verdict and evidence"], rows, style="text claims")
    rules = [[c.name, c.rule] for c in context.claims]
    folded = Folded("The rules", [Table("The rule of each claim", ["Claim", "Rule"], rules, style="text claims")])
    blocks = [Paragraph(text), verdicts, folded]
    return Section("claims", "Which of the paper’s claims hold here", "Claims", blocks)
