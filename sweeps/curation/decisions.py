"""The verb `curate`: apply manual decisions, curate, and write the page for making them."""

from __future__ import annotations

from contextlib import suppress

import storage
from storage import LeaseHeld
from storage.backends import local_path
from sweeps import pipeline
from sweeps.config.schema import Config, previews
from sweeps.curation import page
from sweeps.pipeline import Result
from sweeps.runtime.progress import Display
from sweeps.runtime.run import reopen
from sweeps.stages import curate, preview


def execute(config: Config, decisions: str = "", display: Display | None = None) -> Result:
    """Curate the samples that are labelled. Raises ValueError if decisions do not fit the run.

    If the configuration has a preview and recording has not started, the preview's samples are made if necessary and
    curated. `decisions` is the path of a CSV saved from the page; it replaces decisions applied earlier. The page is
    written even if too few samples are kept.
    """
    curated = preview.settings(config) if _before_recording(config) else config
    lines = [_apply(curated, decisions)] if decisions else []
    result = Result()
    try:
        if curated is config:
            result = pipeline.execute(config, ("curate",), display)
        else:
            pipeline.run_preview(config, result, display)
    except LeaseHeld:
        raise
    except ValueError:
        with suppress(ValueError):
            _write_page(curated)
        raise
    result.lines = lines + result.lines
    if not result.failed:
        result.lines.append(f"page for manual decisions: {_write_page(curated)}")
    return result


def _before_recording(config: Config) -> bool:
    """Whether a preview chooses the samples and the output does not exist yet."""
    if not previews(config):
        return False
    try:
        storage.open(config.output)
    except ValueError:
        return True
    return False


def _apply(config: Config, decisions: str) -> str:
    path = local_path(decisions, "--decisions")
    if not path.is_file():
        raise ValueError(f"--decisions: no file {decisions}; save one from the page that `scenesweep curate` writes")
    store = storage.open(config.output)
    with store.lease(f"scenesweep {config.name}"):
        return f"{curate.apply(store, path.read_bytes(), decisions)} manual decisions applied"


def _write_page(config: Config) -> str:
    run = reopen(config)
    with run.store.lease(f"scenesweep {config.name}"):
        return page.write(run)
