"""Links from the report's numbers to where they come from: anchors of the provenance section."""

from __future__ import annotations

from html import escape

from sweeps.report.tables import Raw


def site_anchor(site: str) -> str:
    """Id of a site's row in the provenance section."""
    return f"from-site-{site.replace('.', '-')}"


def experiment_anchor(experiment: str) -> str:
    """Id of an experiment's row in the provenance section."""
    return f"from-{experiment}"


def site_link(site: str, label: str = "") -> Raw:
    """A site's name that leads to its hashes, cells, samples and W&B runs."""
    words = escape(label or site)
    return Raw(f'<a class="from" href="#{site_anchor(site)}">{words}</a>')


def cells_link(experiment: str) -> str:
    """A line under a table that leads to the experiment's hash, cells and samples."""
    return f'<p class="note download"><a href="#{experiment_anchor(experiment)}">Where these numbers come from</a></p>'
