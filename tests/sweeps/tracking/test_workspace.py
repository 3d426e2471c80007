"""The W&B workspace shows metrics that the mirror logs; errors when it cannot be saved are one line."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from storage import tables
from support.report_store import CONFIG, Made, make_store
from sweeps.analysis.tables import RunData, load
from sweeps.cli.main import main
from sweeps.tracking import workspace
from sweeps.tracking.runs import plan

pytest.importorskip("wandb_workspaces")


@pytest.fixture
def run(tmp_path: Path) -> RunData:
    made = Made(train=2, test=4, sites=("mid.0", "up.3.0"), steps=(1, 15), extras=False, pictures=False)
    return load(make_store(tmp_path, made), CONFIG)


def panels(run: RunData) -> list[dict[str, Any]]:
    model = workspace.workspace(run, "lab", ["heatmap-depth-trained"])._to_model().model_dump(mode="json")
    return [
        panel for section in model["spec"]["section"]["panel_bank_config"]["sections"] for panel in section["panels"]
    ]


def test_every_metric_of_the_workspace_is_logged(run: RunData) -> None:
    planned = plan(run, "site")
    logged = {name for p in planned for row in (*p.history, *p.epochs) for name in row}
    configs = {name for p in planned for name in p.config}
    text = json.dumps(panels(run))
    shown = {name.partition(".")[0] for name in re.findall(r'"(?:\w+:)?((?:saliency|depth)/[\w.]+)"', text)}
    assert {"saliency/dice", "depth/rmse"} <= shown & logged
    assert {name.split("/")[1] for name in shown} <= set(tables.PROBES.names)
    assert {"denoising_step", "epoch"} <= logged
    assert {"variant", "block", "layer_index", "grid", "tokens", "channels"} <= configs
    for task, best in (("saliency", "dice.max"), ("depth", "rmse.min")):
        assert f"{task}/{best}" in text
        assert planned[0].best[f"{task}/{best.partition('.')[0]}"] == best.partition(".")[2]
    for pattern in re.findall(r'"(epochs/[^"]+)"', text):
        assert any(re.fullmatch(pattern, name) for name in logged)


def test_it_shows_the_runs_and_figures_of_the_sweep(run: RunData) -> None:
    model = workspace.workspace(run, "lab", ["heatmap-depth-trained"])._to_model().model_dump_json()
    assert run.group in model
    assert "figures/heatmap-depth-trained" in model


def test_a_refusal_is_one_line_with_the_fix(run: RunData, monkeypatch: pytest.MonkeyPatch) -> None:
    import wandb

    def refuse() -> None:
        raise wandb.errors.UsageError("no API key\nconfigured")

    monkeypatch.setattr(wandb, "Api", refuse)
    with pytest.raises(ValueError, match=r"^dashboards: .*no API key configured.*wandb login"):
        workspace.save(run)


def test_an_account_without_a_name_is_one_line_with_the_fix(run: RunData, monkeypatch: pytest.MonkeyPatch) -> None:
    import wandb

    class Nobody:
        default_entity = None

    monkeypatch.setattr(wandb, "Api", Nobody)
    with pytest.raises(ValueError, match=r"^dashboards: .*wandb login"):
        workspace.save(run)


def test_a_folder_without_a_run_is_one_line_and_code_2(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert main(["dashboards", str(tmp_path)]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert str(tmp_path) in line
