"""The W&B workspace of a sweep: scores by denoising step and by block, losses, and the summary run's figures.

Needs the extra `dashboards` (wandb-workspaces) and, to save, a W&B account.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType
from typing import TYPE_CHECKING

from sweeps.analysis.tables import RunData
from sweeps.analysis.vocabulary import MEASURE_TITLES, STEP_AXIS, TASK_TITLES
from sweeps.tracking.runs import CURVES, EPOCH, HIGHER, STEP

if TYPE_CHECKING:
    from wandb_workspaces.workspaces import Section, Workspace

SHOWN = {"saliency": ("dice", "ap", "crossentropy"), "depth": ("rmse", "spearman", "skill")}
"""by task, the measures that have panels"""
LOSSES = {"train": "training loss", "val": "validation loss"}


def _modules() -> tuple[ModuleType, ModuleType]:
    """The workspaces and panels of wandb-workspaces. Raises ValueError if it is not installed."""
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

    figures: names of the summary run's figures, without the prefix `figures/`.
    """
    workspaces, _ = _modules()
    tasks = list(run.setting("sweep.tasks") or SHOWN)
    return workspaces.Workspace(
        entity=entity,
        project=run.setting("tracking.project") or "scenesweep",
        name=f"scenesweep {run.name}",
        sections=[
            _progress(),
            *(_by_step(task) for task in tasks),
            _by_layer(tasks),
            _by_block(tasks),
            _losses(tasks),
            _figures(figures),
        ],
        settings=workspaces.WorkspaceSettings(x_axis=STEP, max_runs=100),
        runset_settings=workspaces.RunsetSettings(
            filters=workspaces.And(workspaces.Metric("Group") == run.group),
            groupby=[workspaces.Config("variant")],
            pinned_columns=["run:displayName", "config:variant", "config:site", "config:block", "summary:duration_s"],
        ),
    )


def _by_step(task: str) -> Section:
    """The mean of each variant, as in Figure 2 of the paper, and one line per site."""
    workspaces, panels = _modules()
    mean = {"groupby": panels.Config("variant"), "groupby_aggfunc": "mean", "groupby_rangefunc": "stderr"}
    lines = [
        panels.LinePlot(
            title=f"{MEASURE_TITLES[score]}, {title}",
            x=STEP,
            y=[f"{task}/{score}"],
            title_x=STEP_AXIS,
            max_runs_to_show=100,
            **grouping,
        )
        for title, grouping in (("mean by variant", mean), ("every site", {}))
        for score in SHOWN[task]
    ]
    return workspaces.Section(name=f"{TASK_TITLES[task]} by {STEP_AXIS}", panels=lines, is_open=True)


def _progress() -> Section:
    """The driver's run: what a sweep does while it works."""
    workspaces, panels = _modules()
    shown = {
        "Samples a second": "sample/samples_per_second",
        "Tasks that wait": ".*/queue",
        "Failed attempts": ".*/failures",
        "Finished probes": "cells/finished",
    }
    lines = [panels.LinePlot(title=title, x="_runtime", metric_regex=metric) for title, metric in shown.items()]
    return workspaces.Section(name="The sweep at work", panels=lines, is_open=True)


def _by_layer(tasks: Sequence[str]) -> Section:
    """Depth in the network, grid and channels of each site beside its best score."""
    workspaces, panels = _modules()
    column, config = panels.ParallelCoordinatesPlotColumn, panels.Config
    plots = [
        panels.ParallelCoordinatesPlot(
            title=f"{TASK_TITLES[task]}: {MEASURE_TITLES[SHOWN[task][0]]} at the best step, by site",
            columns=[
                *(column(config(name)) for name in ("layer_index", "grid", "tokens", "channels")),
                column(panels.SummaryMetric(f"{task}/{SHOWN[task][0]}.{'max' if SHOWN[task][0] in HIGHER else 'min'}")),
            ],
        )
        for task in tasks
    ]
    return workspaces.Section(name="Sites of the network", panels=plots)


def _by_block(tasks: Sequence[str]) -> Section:
    workspaces, panels = _modules()
    bars = [
        panels.BarPlot(
            title=f"{TASK_TITLES[task]}: {MEASURE_TITLES[SHOWN[task][0]]} at the last step, by block",
            metrics=[f"{task}/{SHOWN[task][0]}.last"],
            groupby=panels.Config("block"),
            groupby_aggfunc="mean",
            max_runs_to_show=100,
        )
        for task in tasks
    ]
    return workspaces.Section(name="Blocks of the network", panels=[*bars, panels.RunComparer()])


def _losses(tasks: Sequence[str]) -> Section:
    workspaces, panels = _modules()
    curves = [
        panels.LinePlot(
            title=f"{TASK_TITLES[task]}: {title} by epoch", x=EPOCH, metric_regex=f"{CURVES}/.*/{task}/{loss}_loss"
        )
        for task in tasks
        for loss, title in LOSSES.items()
    ]
    return workspaces.Section(name="Training of the probes", panels=curves)


def _figures(figures: Sequence[str]) -> Section:
    """One panel per kind of figure: the first part of its name."""
    workspaces, panels = _modules()
    kinds = [name.split("-")[0] for name in figures]
    shown = [
        panels.MediaBrowser(
            title=kind.capitalize(),
            media_keys=[f"figures/{name}" for name, its_kind in zip(figures, kinds, strict=True) if its_kind == kind],
        )
        for kind in sorted(set(kinds))
    ]
    return workspaces.Section(name="Figures of the summary run", panels=shown)


def save(run: RunData, figures: Sequence[str] = ()) -> str:
    """Save the workspace with the logged-in W&B account and return its address.

    Raises ValueError if the extra is not installed, nobody is logged in, or the server refuses.
    """
    import wandb

    _modules()
    try:
        entity = run.setting("tracking.entity") or wandb.Api().default_entity
        if not entity:
            raise ValueError("no account is known")
        result = workspace(run, entity, figures)
        result.save()
    except Exception as error:  # W&B raises many kinds: no key, no network, no such project
        reason = " ".join(str(error).split())[:200]
        raise ValueError(
            f"dashboards: W&B did not take the workspace ({reason}); log in with `wandb login` and send the runs "
            "first, with tracking.mode=online"
        ) from error
    return result.url
