"""A sweep from a notebook does what the command line does, and the tutorial works."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest

import storage
import sweeps
from support.tiny_runs import SMALL, configured, copied
from sweeps import pipeline
from sweeps.config.load import load, to_dict
from sweeps.notebook import pairs
from sweeps.runtime.progress import Display


def test_settings_are_dotted_or_nested_and_keep_their_types() -> None:
    settings = {
        "name": "2026_11_26", "prompts": {"count": 3, "source": "a #1.csv"}, "sweep.steps": range(1, 3),
        "curation": {"safety": True, "min_contrast": 0.5}, "experiments.names": [],
    }  # fmt: skip
    assert list(pairs(settings)) == [
        "name=2026_11_26", "prompts.count=3", "prompts.source=a #1.csv", "sweep.steps=[1, 2]",
        "curation.safety=true", "curation.min_contrast=0.5", "experiments.names=[]",
    ]  # fmt: skip
    values = to_dict(load("scenes", list(pairs(settings))))
    assert (values["name"], values["sweep"]["steps"], values["prompts"]["source"]) == ("2026_11_26", [1, 2], "a #1.csv")


@pytest.mark.slow
def test_a_run_goes_on_where_the_command_line_stopped_and_shows_itself(
    sampled: Path, tiny_pipeline: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    output = copied(sampled, tmp_path / "run")
    settings = dict(pair.split("=", 1) for pair in SMALL) | {"model.name": str(tiny_pipeline), "output": str(output)}
    settings |= {"interventions.tasks": "[]", "ray": {"address": "none"}}
    with pytest.raises(ValueError, match=r"has no report yet"):
        _ = sweeps.open(output).report
    run = sweeps.run("scenes", settings)
    assert run.failed == {}
    assert "probing: 192 of 192 probes done" in run.lines
    assert "probing" in capsys.readouterr().err  # the progress
    assert str(run.report) == (output / "report/index.html").as_uri()
    again = sweeps.open(output)
    assert again.config == run.config
    page = again._repr_html_()
    assert f'<a href="{run.report}"' in page
    assert "depth: best at " in page
    assert run.scores().equals(storage.open(str(output)).scores())
    assert sweeps.run("scenes", settings, quiet=True).lines == []
    with pytest.raises(ValueError, match="sampling.guidance=much: needs a number"):
        sweeps.run("scenes", settings | {"sampling": {"guidance": "much"}})


@pytest.mark.slow
def test_the_tutorial_runs_from_its_first_cell_to_its_last(
    finished: Path, tiny_pipeline: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    output = copied(finished, tmp_path / "runs" / "scenes")
    more = (
        "interventions.tasks=[saliency]",
        "interventions.saliency_steps=[1]",
    )  # whose probes the tutorial's edit uses
    assert pipeline.execute(configured(tiny_pipeline, output, *more), display=Display(quiet=True)).failed == {}
    monkeypatch.setenv("PYTHONPATH", str(Path(sweeps.__file__).parents[1]))
    path = Path(sweeps.__file__).parent / "tutorial.ipynb"
    committed = nbformat.read(path, 4)
    notebook = nbformat.read(path, 4)
    client = nbclient.NotebookClient(notebook, timeout=120, resources={"metadata": {"path": str(tmp_path)}})
    client.execute()  # raises if a cell does
    assert (tmp_path / "edits" / "sheet.png").exists()
    for cell, was in zip(notebook.cells, committed.cells, strict=True):
        if cell.cell_type == "code":  # committed with its outputs, of the same kinds
            kinds = [[sorted(output.get("data", {})) for output in outputs] for outputs in (cell.outputs, was.outputs)]
            assert kinds[0] == kinds[1], cell.source
    text = path.read_text()
    # no path of the machine that it was run on
    for folder in (tempfile.gettempdir(), Path.home(), Path(sweeps.__file__).parents[1]):
        assert f"{folder}/" not in text
    assert len(text) < 400_000
