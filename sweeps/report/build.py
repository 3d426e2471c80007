"""Build OUT/report/index.html: one file with every figure and table of a run.

    path = report.build(store, config)

Reads only tables, images, labels and stored probes, so it can be rebuilt at any time.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from storage import Store
from sweeps.analysis import tables
from sweeps.analysis.tables import RunData
from sweeps.report import page
from sweeps.report.context import Context, build_context
from sweeps.report.figures.base import Panel
from sweeps.report.page import Section, TitledStrip
from sweeps.report.sections import checks, controls, examples, experiments, interventions, provenance, results
from sweeps.report.sections.claims import claims
from sweeps.report.sections.explorer import explorer
from sweeps.report.sections.overview import overview
from sweeps.report.sections.seeds import spread
from sweeps.runtime.layout import PAGE

FIGURES = "report/figures/"
TITLE = "What a diffusion model knows of the scene it paints"


@dataclass(frozen=True)
class Drawn:
    """A report in memory: its data, its page, and the figures and picture strips on the page."""

    context: Context
    html: str
    figures: list[Panel]
    strips: list[TitledStrip]


def draw(run: RunData, store: Store) -> Drawn:
    """Draw the report of a run; `store` caches the predictions that are shown."""
    return draw_context(build_context(run, store))


def draw_context(context: Context) -> Drawn:
    """Draw the report of a context; sections without data are left out."""
    sections = _sections(context)
    parts = [f"Linear probes at {len(context.run.sites)} sites of {context.model}"]
    if context.steps:
        parts.append(f"{context.steps} denoising steps")
    if images := context.count("n_test"):
        parts.append(f"{images} test images")
    summary = " ".join(filter(None, (f"{', '.join(parts)}.", context.run.warning)))
    html = page.render(TITLE, f"scenesweep · {context.run.name}", summary, sections)
    return Drawn(context, html, page.panels(sections), list(page.titled_strips(sections)))


def build(store: Store, config: Mapping[str, object]) -> str:
    """Write the report of `store`; the same tables give the same bytes.

    `config` is the resolved configuration as plain dictionaries. Returns the page's path or URL.
    """
    return write(store, draw(tables.load(store, dict(config)), store))


def write(store: Store, drawn: Drawn) -> str:
    """Write a report's page and every figure as `report/figures/NAME.svg` with its numbers as `NAME.csv`.

    Figures of earlier reports that this one does not have are removed. Returns the page's path or URL.
    """
    store.put(PAGE, drawn.html.encode())
    files = {f"{FIGURES}{p.name}.svg": p.svg for p in drawn.figures}
    files |= {f"{FIGURES}{p.name}.csv": p.csv() for p in drawn.figures}
    for path, text in files.items():
        store.put(path, text.encode())
    for path in set(store.list(FIGURES)) - set(files):
        store.delete(path)
    return f"{store.url.rstrip('/')}/{PAGE}"


def _sections(context: Context) -> list[Section]:
    """All sections in the page's order."""
    main = [
        overview(context),
        explorer(context),
        claims(context),
        results.curves(context),
        results.heatmaps(context),
        interventions.interventions(context),
    ]
    appendix = [
        examples.contact_strip(context),
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
        controls.paper(context),
        provenance.network(context),
        provenance.costs(context),
        provenance.provenance(context),
    ]
    return [*main, *(replace(s, appendix=True) for s in appendix)]
