"""The verb `curate`: applies decisions by hand, curates, and writes the page for deciding."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import storage
from sweeps import pipeline
from sweeps.config.schema import Config, previews
from sweeps.curation import page
from sweeps.pipeline import Result
from sweeps.runtime import run as runs
from sweeps.stages import curate, preview


def execute(config: Config, decisions: str = "") -> Result:
    """Curates what is sampled and labelled. Raises ValueError for decisions that do not fit the run.

    With a preview that is not recorded yet, it is the preview's samples that are curated, and made where
    they are missing. `decisions` is the path of a CSV from the page; it takes the place of decisions
    applied earlier. The page is written also where too few samples are kept.
    """
    own = preview.settings(config) if _before_recording(config) else config
    lines = [_apply(own, decisions)] if decisions else []
    result = Result()
    try:
        if own is config:
            result = pipeline.execute(config, ("curate",))
        else:
            pipeline.run_preview(config, result)
    except ValueError:
        with suppress(ValueError):
            _page(own)
        raise
    result.lines = lines + result.lines
    if not result.failed:
        result.lines.append(f"page for decisions by hand: {_page(own)}")
    return result


def _before_recording(config: Config) -> bool:
    """Whether a preview is to choose the samples, and has not yet."""
    if not previews(config):
        return False
    try:
        storage.open(config.output)
    except ValueError:
        return True
    return False


def _apply(config: Config, decisions: str) -> str:
    path = Path(decisions).expanduser()
    if not path.is_file():
        raise ValueError(f"--decisions: no file {decisions}; save one from the page that `scenesweep curate` writes")
    run = runs.reopen(config, runs.model_info(config))
    with run.store.lease(f"scenesweep {config.name}"):
        return f"{curate.apply(run, path.read_bytes(), decisions)} decisions by hand applied"


def _page(config: Config) -> str:
    run = runs.reopen(config, runs.model_info(config))
    with run.store.lease(f"scenesweep {config.name}"):
        return page.write(run)
