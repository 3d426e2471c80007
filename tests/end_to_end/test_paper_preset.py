"""The preset `paper` from its prompts to its report: the authors' files and split, TRACER, MiDaS, the paper's probes.

The diffusion model is a narrow one with the sites of Stable Diffusion, TRACER has all its layers but runs at 128 pixels
in place of 512, MiDaS is narrow. All weights are random, so the numbers mean nothing: the test checks that every part
fits the next.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import storage
from probing.labelling import midas, tracer
from support import labelling_reference
from support.midas_reference import narrow, state
from support.tiny_runs import stored
from sweeps.cli.main import main

STEPS = (1, 2, 14, 15)
"""those that edits of the first two steps need, with the control of late ones"""
TRAIN, TEST = 5, 3


def prompts(path: Path, count: int, colour: str) -> Path:
    """A CSV file with the authors' columns."""
    rows = [f'"a large {colour} sphere, number {i}",{100 + i},{7 * i}' for i in range(count)]
    path.write_text("\n".join(["prompts,seeds,prompt_inds", *rows, ""]))
    return path


@pytest.fixture(scope="module")
def words(tiny_pipeline: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("paper")
    torch.save(
        labelling_reference.random_state(labelling_reference.tracer_shapes(5)), folder / "TRACER-Efficient-5.pth"
    )
    torch.save(state(), folder / "dpt_large_384.pt")
    return [
        "paper", f"model.name={tiny_pipeline}", "model.autocast=", "model.device=cpu", f"output={folder / 'run'}",
        f"prompts.source={prompts(folder / 'train.csv', TRAIN, 'red')}",
        f"prompts.test={prompts(folder / 'test.csv', TEST, 'blue')}",
        f"labels.saliency_weights={folder / 'TRACER-Efficient-5.pth'}",
        f"labels.depth_weights={folder / 'dpt_large_384.pt'}",
        "ray.address=none", "ray.sampling_gpus=0", "ray.label_gpus=0", "ray.probe_gpus=0", "sampling.threads=1",
        f"sweep.steps=[{','.join(map(str, STEPS))}]", "probe.epochs=2",
        "experiments.emergence_images=1", "experiments.emergence_steps=[2,15]",
        "interventions.saliency_steps=[1,2]", "interventions.depth_steps=[1,2]",
        "interventions.images=1", "interventions.moves=2", "interventions.iterations=2",
    ]  # fmt: skip


@pytest.mark.slow
def test_the_papers_experiment_from_its_prompts_to_its_report(
    words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(midas, "large", narrow)
    small = [replace(arm, size=128) if number == 5 else arm for number, arm in enumerate(tracer.ARMS)]
    monkeypatch.setattr(tracer, "ARMS", tuple(small))
    assert main(["run", *words]) == 0, capsys.readouterr().err
    store = storage.open(next(word for word in words if word.startswith("output=")).removeprefix("output="))

    samples, kept = store.samples().to_pylist(), store.curation().to_pylist()
    assert [row["seed"] for row in samples] == [*range(100, 100 + TRAIN), *range(100, 100 + TEST)]
    assert Counter(row["split"] for row in kept) == {"train": TRAIN, "test": TEST}

    fitted = [row for row in store.table("probes").to_pylist() if row["experiment"] == "grid"]
    grid = [row for row in fitted if row["control"] == "none"]
    assert len(grid) == 16 * len(STEPS) * 2 * 2
    assert len([row for row in fitted if row["control"] == "shuffled"]) == len(grid)
    assert {row["status"] for row in fitted} == {"done"}

    edits = [row for row in store.table("interventions").to_pylist() if row["experiment"] == "interventions"]
    counts = Counter((row["task"], row["control"]) for row in edits)
    controls = ("edit", "none", "random_direction", "random_probe", "shuffled_probe", "late_steps")
    assert counts == {(task, control): 2 for task in ("saliency", "depth") for control in controls}

    page = store.get("report/index.html").decode()
    assert "dpt_large_384.pt" in page
    assert main(["verify", store.url]) == 0
    before, rows = stored(store.url), len(store.table("interventions"))
    assert main(["run", *words]) == 0
    assert stored(store.url) == before
    assert len(store.table("interventions")) == rows
