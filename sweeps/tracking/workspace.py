"""The W&B workspace of a sweep: scores by denoising step, by block, losses, and the summary run's figures.

Needs the extra `dashboards` (wandb-workspaces) and, to save, a W&B account.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from sweeps.analysis.tables import RunData
from sweeps.tracking.runs import CURVES, EPOCH, STEP

if TYPE_CHECKING:
    from wandb_workspaces.workspaces import Section, Workspace

SHOWN = {"saliency": ("dice", "ap", "crossentropy"), "depth": ("rmse", "spearman", "skill")}
"""task -> scores with a panel of their own"""


def _modules() -> tuple[Any, Any]:
    try:
        import wandb_workspaces.reports.v2 as panels
        import wandb_workspaces.workspaces as workspaces
    except ImportError as error:
        raise ValueError(
            "dashboards: wandb-workspaces is not installed; pip install 'scenesweep[dashboards]'"
        ) from error
    return workspaces, panels


def workspace(run: RunData, entity: str, figures: Sequence[str] = ()) -> Workspace:
    """The sweep's workspace, not saved yet: only runs of its group, one section per question.

    figures: names of the summary run's pictures, without their prefix."""
    workspaces, _ = _modules()
    expression = workspaces.Metric("Group") == run.name
    tasks = list(run.setting("sweep.tasks") or SHOWN)
    return workspaces.Workspace(
        entity=entity,
        project=run.setting("tracking.project") or "scenesweep",
        name=f"scenesweep {run.name}",
        sections=[*(_scores(task) for task in tasks), _blocks(tasks), _losses(tasks), _summary(figures)],
        settings=workspaces.WorkspaceSettings(x_axis=STEP, max_runs=100),
        runset_settings=workspaces.RunsetSettings(
            filters=workspaces.And(expression),
            groupby=[workspaces.Config("variant")],
            pinned_columns=["run:displayName", "config:variant", "config:site", "config:block"],
        ),
    )


def _scores(task: str) -> Section:
    """One line per run, and the mean of each variant: Figure 2 of the paper."""
    workspaces, panels = _modules()
    lines = [_line(f"{task}/{score}", groupby=None) for score in SHOWN[task]]
    means = [_line(f"{task}/{score}", groupby=panels.Config("variant")) for score in SHOWN[task]]
    return workspaces.Section(name=f"{task.capitalize()} by denoising step", panels=[*means, *lines], is_open=True)


def _line(metric: str, groupby: Any) -> Any:
    _, panels = _modules()
    spread = {} if groupby is None else {"groupby": groupby, "groupby_aggfunc": "mean", "groupby_rangefunc": "stderr"}
    title = f"{metric}, mean by variant" if spread else f"{metric}, every site"
    return panels.LinePlot(title=title, x=STEP, y=[metric], title_x="denoising step", max_runs_to_show=100, **spread)


def _blocks(tasks: list[str]) -> Section:
    workspaces, panels = _modules()
    bars = [
        panels.BarPlot(
            title=f"{task}/{SHOWN[task][0]} at the last step, by block",
            metrics=[f"{task}/{SHOWN[task][0]}"],
            groupby=panels.Config("block"),
            groupby_aggfunc="mean",
            max_runs_to_show=100,
        )
        for task in tasks
    ]
    return workspaces.Section(name="Blocks of the network", panels=[*bars, panels.RunComparer()])


def _losses(tasks: list[str]) -> Section:
    workspaces, panels = _modules()
    curves = [
        panels.LinePlot(title=f"{task}: {loss} loss by epoch", x=EPOCH, metric_regex=f"{CURVES}/.*/{task}/{loss}_loss")
        for task in tasks
        for loss in ("train", "val")
    ]
    return workspaces.Section(name="Training of the probes", panels=curves)


def _summary(figures: Sequence[str]) -> Section:
    workspaces, panels = _modules()
    kinds = {name.split("-")[0] for name in figures}
    shown = [
        panels.MediaBrowser(
            title=kind.capitalize(), media_keys=[f"figures/{n}" for n in figures if n.split("-")[0] == kind]
        )
        for kind in sorted(kinds)
    ]
    return workspaces.Section(name="Figures of the summary run", panels=shown)


def save(run: RunData, figures: Sequence[str] = ()) -> str:
    """Saves the workspace with the account that W&B is logged in with; its address.

    ValueError where the extra is not installed, nobody is logged in, or the server refuses."""
    import wandb

    _modules()
    try:
        entity = run.setting("tracking.entity") or wandb.Api().default_entity
        if not entity:
            raise ValueError("no account is known")
        made = workspace(run, entity, figures)
        made.save()
    except Exception as error:  # W&B raises many kinds: no key, no network, no such project
        reason = " ".join(str(error).split())[:200]
        raise ValueError(
            f"dashboards: W&B did not take the workspace ({reason}); log in with `wandb login` and send the runs "
            "first, with tracking.mode=online"
        ) from error
    return made.url
