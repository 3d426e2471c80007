"""What can be known at the start is told at the start, by `plan` and by `run`, and nothing is written."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from support.tiny_runs import settings
from sweeps.cli.main import main

ROOT = Path(__file__).parents[3]
INPAINTING = {"unet/config.json": {"in_channels": 9}}
CLASSES = {"unet/config.json": {"num_class_embeds": 10}}
SCHEDULE = {"scheduler/scheduler_config.json": {"beta_schedule": "laplace"}}
LARGER = {"unet/config.json": {"sample_size": 32}}


def edited(pipeline: Path, folder: Path, edits: dict[str, dict[str, object]]) -> Path:
    """A copy of a pipeline with other fields in its JSON files."""
    shutil.copytree(pipeline, folder)
    for name, fields in edits.items():
        path = folder / name
        path.write_text(json.dumps(json.loads(path.read_text()) | fields))
    return folder


def refusals(words: list[str], output: Path, capsys: pytest.CaptureFixture[str]) -> list[str]:
    """What `plan` and `run` print when they refuse; fails unless both do in one line and write nothing."""
    lines = []
    for verb in ("plan", "run"):
        assert main([verb, *words]) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1, error
        lines.append(error)
        assert not output.exists()
    return lines


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["prompts.count=6"], "6 kept prompts are too few for train 5, val 3, test 4"),
        (["curation.train=500"], "12 kept prompts are too few for train 500"),
        (["curation.train=5", "curation.val=0.01", "curation.test=7", "probe.selection=val"], "no validation images"),
        (["labels.threshold=300"], "labels.threshold=300: saliency is 0 to 255"),
        (["labels.saliency=no-such"], "no labeller 'no-such'"),
        (["prompts.min_score=5"], "prompts.min_score=5.0: prompts of the grammar have none"),
        (["interventions.rows=1", "interventions.controls=[random_direction]"], "interventions.rows=1"),
        (["interventions.moves=100000"], "interventions.moves=100000"),
        (["interventions.depth_sites=[up.9.9]"], "no site 'up.9.9'"),
        (["experiments.names=[converged]", "experiments.converged_sites=[up.9.9]"], "no site 'up.9.9'"),
        (["experiments.names=[transfer]", "probe.hidden=4", "interventions.tasks=[]"], "which transfer needs"),
        (["sweep.control_sites=[up.9.9]"], "no site 'up.9.9'"),
        (["sampling.sites=[up.9.9]"], "no site 'up.9.9'"),
        (["sampling.sites=[attention,resid]"], "no site 'resid' in this model; did you mean 'residual'?"),
        (["sampling.sites=[attention,up.2.1.mpl]"], "did you mean 'up.2.1.mlp'?"),
        (["model.device=quantum"], "model.device='quantum'"),
        (["sweep.controls=[none,other_image]", "curation.train=1"], "other_image: needs 2 training images"),
    ],
)
def test_settings(tiny_pipeline, tmp_path, capsys, words, message):
    output = tmp_path / "out"
    for line in refusals(["scenes", *settings(tiny_pipeline, output, *words)], output, capsys):
        assert message in line


def test_sites_of_another_kind_are_planned_and_what_is_left_out_is_said(tiny_pipeline, tmp_path, capsys):
    words = ["sampling.sites=[cross,up.2.1.mlp]", "sweep.controls=[none,position]", "sweep.control_sites=[up.2.1]",
             "interventions.saliency_sites=[decoder]", "interventions.depth_sites=[all]"]  # fmt: skip
    assert main(["plan", "scenes", *settings(tiny_pipeline, tmp_path / "out", *words)]) == 0
    plan = capsys.readouterr().out
    assert "sweep.control_sites: none of its sites is in sampling.sites" in plan
    priced = [line.split()[0] for line in plan.splitlines() if line.startswith(("  up.", "  mid", "  down."))]
    assert len(priced) == 17
    assert {"mid.0.cross", "up.2.1.cross", "up.2.1.mlp"} <= set(priced)


@pytest.mark.skipif(importlib.util.find_spec("rembg") is not None, reason="rembg is installed")
def test_a_package_that_is_not_installed(tiny_pipeline, tmp_path, capsys):
    words = ["scenes", *settings(tiny_pipeline, tmp_path / "out", "labels.saliency=rembg-u2net")]
    for line in refusals(words, tmp_path / "out", capsys):
        assert "pip install" in line


@pytest.mark.parametrize(
    ("edits", "message"),
    [
        (INPAINTING, "in_channels=9"),
        (CLASSES, "num_class_embeds=10"),
        (SCHEDULE, 'beta_schedule="laplace"'),
        (LARGER, "labels.saliency=scenes: labels images of 128 x 128, the model's have 256 x 256"),
    ],
)
def test_models(tiny_pipeline, tmp_path, capsys, edits, message):
    model = edited(tiny_pipeline, tmp_path / "model", edits)
    for line in refusals(["scenes", *settings(model, tmp_path / "out")], tmp_path / "out", capsys):
        assert message in line


def prompts(path: Path, *rows: str) -> str:
    path.write_text("prompt,seed\n" + "".join(f"{row}\n" for row in rows))
    return str(path)


def test_words_that_the_scenes_model_lacks(tmp_path, capsys):
    source = prompts(tmp_path / "p.csv", "a red box,1", "a red dragon,2")
    words = ["scenes", f"prompts.source={source}", "prompts.count=0", f"output={tmp_path / 'out'}", "ray.address=none"]
    for line in refusals(words, tmp_path / "out", capsys):
        assert "(p.csv row 3): the scenes model does not know 'dragon'" in line


@pytest.mark.parametrize("same", [True, False])
def test_training_prompts_are_no_test_prompts(tiny_pipeline, tmp_path, capsys, same):
    train = prompts(tmp_path / "a.csv", "a red box,1", "a blue box,2")
    test = train if same else prompts(tmp_path / "b.csv", "a green box,1", "a blue box,2")
    words = [f"prompts.source={train}", f"prompts.test={test}", "prompts.count=0", "probe.selection=last"]
    for line in refusals(["scenes", *settings(tiny_pipeline, tmp_path / "out", *words)], tmp_path / "out", capsys):
        assert "are training prompts too" in line
        assert "row" in line


def test_a_count_is_that_of_both_files(tiny_pipeline, tmp_path, capsys):
    train = prompts(tmp_path / "a.csv", *(f"a red box {i},{i}" for i in range(9)))
    test = prompts(tmp_path / "b.csv", *(f"a blue box {i},{i}" for i in range(9)))
    words = [f"prompts.source={train}", f"prompts.test={test}", "prompts.count=2", "probe.selection=last"]
    assert main(["plan", "scenes", *settings(tiny_pipeline, tmp_path / "out", *words)]) == 0
    shown = capsys.readouterr().out
    assert "\n4 samples" in shown
    assert "split: given by the two files" in shown


def test_a_plan_tells_which_prompts_are_cut_and_which_weights_a_run_needs(tiny_pipeline, tmp_path, capsys):
    source = prompts(tmp_path / "p.csv", *(f"a red box number {i},1" for i in range(11)), f"{'red ' * 50},2")
    words = [f"prompts.source={source}", "prompts.count=0", "labels.saliency=tracer"]
    assert main(["plan", "scenes", *settings(tiny_pipeline, tmp_path / "out", *words)]) == 0
    shown = capsys.readouterr().out
    assert "p.csv row 13 by 8" in shown
    assert "labels.saliency_weights: not set: a run needs the checkpoint of tracer" in shown
    assert "sampler           LMS" in shown


def test_the_paper_is_planned_on_a_fresh_machine_without_network(tmp_path: Path) -> None:
    """Neither the model nor the authors' prompts are there, and nothing is asked of the hub."""
    environment = os.environ | {
        "HF_HOME": str(tmp_path / "hf"),
        "HF_ENDPOINT": "http://127.0.0.1:9",
        "PYTHONPATH": str(ROOT),
    }
    command = [sys.executable, "-m", "sweeps", "plan", "paper"]
    ran = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert (ran.returncode, ran.stderr) == (0, "")
    lines = ran.stdout.splitlines()
    assert lines[0].startswith("about 3.2 h, ")
    assert "617 samples x 2 variants (trained, random), 15 steps, shards of 8" in lines
    assert "network calls     18510 (both halves of guidance counted as one)" in lines
    assert any("CompVis/stable-diffusion-v1-4 is not on this machine" in line for line in lines)
    assert any("no file train_split_prompts_seeds.csv and test_split_prompts_seeds.csv here" in line for line in lines)
    assert not (tmp_path / "runs").exists()
