"""Links from the report's numbers to their origin: anchors in the provenance section."""

from __future__ import annotations

from markupsafe import Markup

from sweeps.report.page import Paragraph


def site_anchor(site: str) -> str:
    """Id of a site's row in the provenance section."""
    return f"from-site-{site.replace('.', '-')}"


def experiment_anchor(experiment: str) -> str:
    """Id of an experiment's row in the provenance section."""
    return f"from-{experiment}"


def site_link(site: str) -> Markup:
    """A site's name that links to its hashes, probes, samples and W&B runs."""
    return Markup('<a class="from" href="#{}">{}</a>').format(site_anchor(site), site)


def source_link(experiment: str) -> Paragraph:
    """A line that links to the experiment's hash, probes and samples."""
    link = Markup('<a href="#{}">Where these numbers come from</a>').format(experiment_anchor(experiment))
    return Paragraph(link, "note download")


def code(text: object) -> Markup:
    """Text in a fixed-width font."""
    return Markup("<code>{}</code>").format(text)
