"""Build OUT/report/index.html: one file with every figure and table of a run.

    path = report.build(store, config)

Reads tables, images, labels and stored probes alone, so it can be rebuilt at any time.
"""

from __future__ import annotations

from html import escape
from typing import Any

from sweeps import report_checks as checks
from sweeps import report_context, report_data
from sweeps import report_edits as edits
from sweeps import report_extra as extra
from sweeps import report_facts as facts
from sweeps import report_more as more
from sweeps import report_pictures as pictures
from sweeps import report_results as results
from sweeps.report_claims import claims
from sweeps.report_context import Context
from sweeps.report_html import page
from sweeps.report_seeds import spread

PAGE = "report/index.html"
FIGURES = "report/figures/"
TITLE = "Where and when scene geometry can be read in a diffusion model"


def build(store: Any, config: dict[str, Any]) -> str:
    """Write the report of `store`; the same tables give the same bytes.

    Also writes every figure as `report/figures/NAME.svg` with its numbers as `NAME.csv`, and
    removes figures of earlier reports that are in it no longer.
    `config` is the resolved configuration as plain dictionaries. Returns the page's path or URL.
    """
    context = report_context.build(report_data.load(store, config), store)
    store.put(PAGE, render(context).encode())
    files = {f"{FIGURES}{p.name}.svg": p.svg for p in context.panels}
    files |= {f"{FIGURES}{p.name}.csv": p.csv() for p in context.panels}
    for path, text in files.items():
        store.put(path, text.encode())
    for path in set(store.list(FIGURES)) - set(files):
        store.delete(path)
    return f"{store.url.rstrip('/')}/{PAGE}"


def render(context: Context) -> str:
    """The page's HTML; parts without data are left out."""
    sections = [
        results.headline(context),
        claims(context),
        pictures.contact_strip(context),
        results.curves(context),
        results.heatmaps(context),
        pictures.examples(context),
        results.sites(context),
        more.controls(context),
        spread(context),
        checks.converged(context),
        checks.truth(context),
        extra.emergence(context),
        extra.vae(context),
        extra.conv(context),
        extra.smoothness(context),
        extra.selectivity(context),
        extra.transfer(context),
        edits.interventions(context),
        more.paper(context),
        facts.network(context),
        facts.costs(context),
        facts.provenance(context),
    ]
    kicker = f"scenesweep · {context.run.name}"
    foot = (
        "Made by scenesweep from the tables of this run. Figures are also in "
        "<code>report/figures</code> as SVG, with their numbers as CSV."
    )
    return page(TITLE, kicker, _meta(context), sections, foot)


def _meta(context: Context) -> str:
    sites, steps = len(context.run.sites), context.steps
    parts = [f"Linear probes on {sites} self-attention sites of {escape(context.model)}"]
    if steps:
        parts.append(f"{steps} denoising steps")
    test = context.count("n_test")
    if test:
        parts.append(f"{test} test images")
    return f'<p class="meta">{", ".join(parts)}.</p>'
