"""The verb `curate`: applies decisions by hand, curates, and writes the page for deciding."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from sweeps import curate_stage, curation_page, pipeline
from sweeps import run as runs
from sweeps.config import Config
from sweeps.pipeline import Result


def carry_out(config: Config, decisions: str = "") -> Result:
    """Curates what is sampled and labelled. Raises ValueError for decisions that do not fit the run.

    `decisions` is the path of a CSV from the page; it takes the place of decisions applied earlier.
    The page is written also where too few samples are kept, so that they can be looked at.
    """
    lines = [_apply(config, decisions)] if decisions else []
    try:
        result = pipeline.carry_out(config, ("curate",))
    except ValueError:
        with suppress(ValueError):
            _page(config)
        raise
    result.lines = lines + result.lines
    if not result.failed:
        result.lines.append(f"page for decisions by hand: {_page(config)}")
    return result


def _apply(config: Config, decisions: str) -> str:
    path = Path(decisions).expanduser()
    if not path.is_file():
        raise ValueError(f"--decisions: no file {decisions}; save one from the page that `scenesweep curate` writes")
    run = runs.reopen(config, runs.facts(config))
    with run.store.lease(f"scenesweep {config.name}"):
        return f"{curate_stage.apply(run, path.read_bytes(), decisions)} decisions by hand applied"


def _page(config: Config) -> str:
    run = runs.reopen(config, runs.facts(config))
    with run.store.lease(f"scenesweep {config.name}"):
        return curation_page.write(run)
