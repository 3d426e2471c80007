"""Build OUT/report/index.html: one file with every figure and table of a run.

    path = report.build(store, config)

Reads tables, images, labels and stored probes alone, so it can be rebuilt at any time.
"""

from __future__ import annotations

from dataclasses import dataclass
from html import escape
from typing import Any

from sweeps.analysis import tables
from sweeps.analysis.tables import RunData
from sweeps.report import context as report_context
from sweeps.report.context import Context
from sweeps.report.html import page
from sweeps.report.sections import checks, controls, examples, experiments, interventions, provenance, results
from sweeps.report.sections.claims import claims
from sweeps.report.sections.seeds import spread

PAGE = "report/index.html"
FIGURES = "report/figures/"
TITLE = "Where and when scene geometry can be read in a diffusion model"


@dataclass(frozen=True)
class Drawn:
    """A report in memory: what it was drawn from, and its page."""

    context: Context
    page: str


def draw(run: RunData, store: Any) -> Drawn:
    """The report of a run; `store` keeps the predictions that are shown."""
    context = report_context.build(run, store)
    return Drawn(context, render(context))


def build(store: Any, config: dict[str, Any]) -> str:
    """Write the report of `store`; the same tables give the same bytes.

    `config` is the resolved configuration as plain dictionaries. Returns the page's path or URL.
    """
    return write(store, draw(tables.load(store, config), store))


def write(store: Any, drawn: Drawn) -> str:
    """Write a report's page, every figure as `report/figures/NAME.svg` with its numbers as `NAME.csv`, and remove
    figures of earlier reports that are in it no longer. Returns the page's path or URL."""
    store.put(PAGE, drawn.page.encode())
    panels = drawn.context.panels
    files = {f"{FIGURES}{p.name}.svg": p.svg for p in panels} | {f"{FIGURES}{p.name}.csv": p.csv() for p in panels}
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
        examples.contact_strip(context),
        results.curves(context),
        results.heatmaps(context),
        examples.examples(context),
        results.sites(context),
        controls.controls(context),
        spread(context),
        checks.converged(context),
        checks.truth(context),
        experiments.emergence(context),
        experiments.vae(context),
        experiments.conv(context),
        experiments.smoothness(context),
        experiments.selectivity(context),
        experiments.transfer(context),
        interventions.interventions(context),
        controls.paper(context),
        provenance.network(context),
        provenance.costs(context),
        provenance.provenance(context),
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
