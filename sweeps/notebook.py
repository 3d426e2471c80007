"""A sweep from a notebook: the verbs of the command line as functions, with results that show themselves.

import sweeps
run = sweeps.run("scenes", {"sampling.guidance": 5, "output": "runs/guided"})
run.report                        # where the report is, as a link
run.scores()                      # one row for each probe
run.edit("a red sphere on a green floor under a sky", move=(-24, 0))
"""

from __future__ import annotations

import base64
import json
import sys
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import storage
from storage import Store
from storage.backends import local_path
from storage.keys import BUILT
from sweeps.config.load import load
from sweeps.config.schema import Config
from sweeps.runtime.layout import PAGE, page_link
from sweeps.runtime.run import stored_config

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Report:
    """The page of a report."""

    url: str
    """what a browser opens"""

    def __str__(self) -> str:
        return self.url

    def _repr_html_(self) -> str:
        return f'<a href="{escape(self.url)}" target="_blank">{escape(self.url)}</a>'


@dataclass(frozen=True)
class Edit:
    """Edited pictures and how they score."""

    folder: Path
    """pictures, `recipe.yaml` and `scores.json`"""
    lines: list[str]

    @cached_property
    def scores(self) -> list[dict[str, Any]]:
        """One row for each picture, with the columns of results/interventions."""
        return json.loads((self.folder / "scores.json").read_text())

    def _repr_html_(self) -> str:
        sheet = base64.b64encode((self.folder / "sheet.png").read_bytes()).decode()
        lines = "".join(f"<div>{escape(line)}</div>" for line in self.lines)
        return (
            f'<img alt="before, its label, target label, after, its label" src="data:image/png;base64,{sheet}">{lines}'
        )


@dataclass(frozen=True, repr=False)
class Sweep:
    """An output and the settings that it was made with."""

    config: Config
    lines: list[str] = field(default_factory=list)
    """what `run` did, in words"""
    failed: dict[str, str] = field(default_factory=dict)
    """what failed, and why"""

    @cached_property
    def store(self) -> Store:
        """Everything that is on the disk."""
        return storage.open(self.config.output)

    @property
    def report(self) -> Report:
        """The page of the report. Raises ValueError if there is none yet."""
        if not self.store.exists(PAGE):
            raise ValueError(f"{self.config.output}: has no report yet; run the stages that are left")
        return Report(page_link(self.config.output))

    def scores(self) -> pd.DataFrame:
        """One row for each finished probe; `storage.SCORES` explains the columns."""
        return self.store.scores()

    def edit(
        self, prompt: str, move: tuple[int, int], *, seed: int = 0, task: str = "saliency", to: str | Path | None = None
    ) -> Edit:
        """Draw a prompt, then again with the object moved by `move` pixels (right, down).

        The same as `scenesweep intervene --prompt`. task: whose probes steer, `saliency` or `depth`. to: folder of the
        pictures, by default a new temporary one. Raises ValueError if the probes that it needs are not fitted.
        """
        from sweeps.cli import play

        _quiet()
        folder = local_path(to, "to") if to is not None else Path(tempfile.mkdtemp(prefix="scenesweep-edit-"))
        request = play.Request(prompt, seed, task, play.goals_from([list(move)], [], []))
        return Edit(folder, play.play(self.config, request, folder))

    def __repr__(self) -> str:
        return f"Sweep({self.config.name!r} in {self.config.output!r})"

    def _repr_html_(self) -> str:
        ending = self.store.readable_document(BUILT).get("ending", {})
        found = [f"{noun}: {text}" for noun, text in ending.get("findings", {}).items()]
        found += [f"{verdict}: {name}" for verdict, name in ending.get("claims", [])]
        failed = [f"failed: {key}: {reason}" for key, reason in self.failed.items()]
        rows = "".join(f"<li>{escape(line)}</li>" for line in [*failed, *found])
        link = self.report._repr_html_() if self.store.exists(PAGE) else "no report yet"
        return f"<b>{escape(self.config.name)}</b> in <code>{escape(self.config.output)}</code>: {link}<ul>{rows}</ul>"


def pairs(settings: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """`key=value` of settings that may be nested: text as it is, other values as JSON, which YAML contains."""
    for key, value in settings.items():
        if isinstance(value, Mapping):
            yield from pairs(value, f"{prefix}{key}.")
        else:
            plain = list(value) if isinstance(value, tuple | set | range) else value
            yield f"{prefix}{key}={plain if isinstance(plain, str) else json.dumps(plain)}"


def run(preset: str = "scenes", settings: Mapping[str, Any] | None = None, quiet: bool = False) -> Sweep:
    """Do everything of a preset or YAML file that is not done yet: `scenesweep run`.

    settings: dotted or nested keys and their values. Progress is written as on the command line, unless `quiet`.
    Raises ValueError for wrong settings before anything is written; what failed is in the result.
    """
    from sweeps import pipeline
    from sweeps.runtime.progress import Display

    _quiet()
    config = load(preset, list(pairs(settings or {})))
    result = pipeline.execute(config, display=Display(sys.stderr, quiet=quiet))
    return Sweep(config, [*result.counts, *result.lines], result.failed)


def _quiet() -> None:
    """Keep the notices of libraries out of the notebook, also that on missing widgets for progress bars."""
    from sweeps.cli.main import quiet_environment

    quiet_environment()
    warnings.filterwarnings("ignore", message="IProgress not found")


def open(output: str | Path) -> Sweep:
    """An existing output, with the settings that it was made with. Raises ValueError if there is none."""
    return Sweep(stored_config(str(output)))
