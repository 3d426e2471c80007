"""Hours and price on many GPUs: rounds of equal tasks, one storage for all, assumptions named."""

from __future__ import annotations

import heapq
import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sweeps.cli.main import main
from sweeps.config.load import load
from sweeps.planning import cluster_costs, measured, table
from sweeps.planning.cluster_costs import GpuStage
from sweeps.planning.rates import STABLE_DIFFUSION, Rates

UNET = {
    "sample_size": 64, "in_channels": 4, "out_channels": 4, "block_out_channels": [320, 640, 1280, 1280],
    "layers_per_block": 2, "attention_head_dim": 8, "cross_attention_dim": 768,
    "down_block_types": ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"],
    "up_block_types": ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3,
}  # fmt: skip
VAE = {
    "block_out_channels": [128, 256, 512, 512], "latent_channels": 4,
    "down_block_types": ["DownEncoderBlock2D"] * 4, "up_block_types": ["UpDecoderBlock2D"] * 4,
}  # fmt: skip


@pytest.fixture
def paper(tmp_path: Path) -> list[str]:
    """The paper's sweep over a folder that holds only the configuration of Stable Diffusion v1."""
    for name, values in (("unet", UNET), ("vae", VAE)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(json.dumps(values))
    (tmp_path / "model_index.json").write_text("{}")
    split = ["prompts.count=617", "prompts.test=", "curation.train=246", "curation.test=371"]
    return ["paper", *split, f"model.name={tmp_path}", "output=s3://bucket/run"]


def reference(tasks: int, workers: int, seconds: float) -> float:
    """The end of the last task, where each worker takes the next as soon as it is free."""
    free = [0.0] * workers
    for _ in range(tasks):
        heapq.heappush(free, heapq.heappop(free) + seconds)
    return max(free)


@settings(max_examples=100)
@given(st.integers(1, 200), st.integers(1, 70), st.floats(0.1, 100))
def test_without_a_limit_it_is_list_scheduling(tasks: int, gpus: int, seconds: float) -> None:
    stage = GpuStage("sampling", tasks, seconds, 1.0, 1)
    assert stage.wall_seconds(gpus, 1e30, 0) == pytest.approx(reference(tasks, gpus, seconds))


@settings(max_examples=100)
@given(st.integers(1, 300), st.integers(1, 64), st.floats(0.1, 100), st.floats(1, 1e10), st.floats(1e6, 1e11))
def test_neither_workers_nor_storage_are_outrun(
    tasks: int, gpus: int, seconds: float, size: float, storage: float
) -> None:
    stage = GpuStage("sampling", tasks, seconds, size, 1)
    wall = stage.wall_seconds(gpus, storage, 0)
    assert wall >= tasks * size / storage * (1 - 1e-9)
    assert wall >= tasks * seconds / gpus * (1 - 1e-9)
    assert wall <= stage.wall_seconds(1, storage, 0) * (1 + 1e-9)
    if gpus <= stage.gpu_limit(storage):
        assert wall == pytest.approx(stage.wall_seconds(gpus, 1e30, 0))


def test_fractions_of_a_gpu_make_more_workers() -> None:
    # 32 tasks of a second on 8 GPUs: as many rounds as it takes with 32, 16, 8 and 4 workers
    rounds = [GpuStage("probing", 32, 1, 0, part).wall_seconds(8, 1, 0) for part in (0.25, 0.5, 1, 2)]
    assert rounds == [1, 2, 4, 8]
    assert GpuStage("probing", 0, 1, 1, 1).wall_seconds(8, 1, 60) == 0
    assert GpuStage("editing", 3, 1, 0, 1).gpu_limit(1e9) == math.inf


def test_the_paper_on_many_gpus(paper: list[str], capsys: Any) -> None:
    assert main(["plan", *paper, "--gpus", "64", "--rate", "0.5", "--rates", "storage=4", "price=2.5"]) == 0
    lines = capsys.readouterr().out.splitlines()
    rows = [line.replace("*", " ").split() for line in lines[1:4]]
    assert [row[0] for row in rows] == ["1", "8", "64"]
    hours = [float(row[-3]) for row in rows]
    assert hours[0] > hours[1] > hours[2]
    for count, row in zip((1, 8, 64), rows, strict=True):
        assert float(row[-2]) == pytest.approx(count * float(row[-3]), abs=0.01 * count + 0.06)
        assert float(row[-1]) == pytest.approx(2.5 * float(row[-2]), abs=1)
    # 156 tasks of 16 s on one GPU, and a minute until it has its model
    assert float(rows[0][1]) == pytest.approx((156 * 16 + 60) / 3600, abs=0.01)
    assert "sampling 0.5 samples/s (given)" in lines[-2]
    assert "storage 4 GB/s in all (given)" in lines[-2]
    assert "labelling 2 samples/s (assumed)" in lines[-2]
    assert lines[-1].startswith("nothing was measured on a card")


def test_where_the_storage_becomes_the_limit(paper: list[str]) -> None:
    text = table.on_gpus(load(paper[0], paper[1:]), 64, Rates(sampling=0.5, storage=2))
    row, limits = text.splitlines()[3:5]
    assert "*" in row.split()[1]
    limit = float(limits.partition("sampling above ")[2].split()[0])
    # bytes of one sample, all sites and steps, fp16, and its share of latents and images
    sample = 2 * 15 * 11_550_720
    assert limit == pytest.approx(2e9 / (0.5 * sample), rel=0.05)


def hours_of_editing(words: list[str], *more: str) -> float:
    """On one GPU, without the minute until it has its model."""
    text = table.on_gpus(load(words[0], [*words[1:], *more]), 1, Rates(editing=10, start=1e-9))
    return float(text.splitlines()[1].replace("*", " ").split()[4])


def test_only_test_images_are_edited(paper: list[str], tmp_path: Path) -> None:
    assert hours_of_editing(paper) == pytest.approx(371 * 2 / 10)
    assert hours_of_editing(paper, "curation.test=0") == pytest.approx((617 - 246) * 2 / 10)
    assert hours_of_editing(paper, "interventions.images=100", "interventions.tasks=[depth]") == pytest.approx(10)
    assert hours_of_editing(paper, "interventions.tasks=[]") == 0
    # 5 moves with 4 controls and the edit are the unit; a dose makes the 5 edits alone
    assert hours_of_editing(paper, "interventions.dose=[64]") == pytest.approx(371 * 2 / 10 * 6 / 5, rel=1e-3)
    for name, count in (("train", 5), ("test", 3)):
        (tmp_path / f"{name}.csv").write_text("prompts,seeds\n" + "".join(f"{name} {i},{i}\n" for i in range(count)))
    files = [f"prompts.source={tmp_path / 'train.csv'}", f"prompts.test={tmp_path / 'test.csv'}", "prompts.count=0"]
    assert hours_of_editing(paper, *files) == pytest.approx(3 * 2 / 10)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--gpus", "-1"], "above 0"),
        (["--gpus", "4", "--rates", "storage=fast"], "--rates storage=fast: needs a number, in GB/s"),
        (["--gpus", "4", "--rates", "speed=3"], "--rates speed: unknown; known are sampling"),
        (["--gpus", "4", "--rates", "storage=-1"], "above 0"),
        (["--rates", "no-such-file.json"], "--rates no-such-file.json: can't be read: No such file"),
        (["--rates", "a.json", "b.json"], "give one file"),
    ],
)
def test_wrong_numbers_are_one_line(words: list[str], expected: str, paper: list[str], capsys: Any) -> None:
    assert main(["plan", *paper, *words]) == 2
    error = capsys.readouterr().err
    assert expected in error
    assert error.count("\n") == 1


MEASURED = {"sampling": 8.0, "labelling": 40.0, "probing": 100.0, "overhead": 1.5, "storage": 3.0}


def file_of_a_bench(folder: Path, **changes: object) -> str:
    """A file as `bench gpu` writes it, on a card of the name H100."""
    document = {
        "bench": "gpu", "version": 1, "device": "cuda", "narrow": False, "model": STABLE_DIFFUSION, "steps": 15,
        "machine": {"card": "H100"}, "pieces": {}, "rates": MEASURED,
    }  # fmt: skip
    (folder / "gpu.json").write_text(json.dumps(document | changes))
    return str(folder / "gpu.json")


def test_a_measured_card_takes_the_place_of_assumptions(paper: list[str], tmp_path: Path, capsys: Any) -> None:
    assert main(["plan", *paper, "--gpus", "1", "--rates", file_of_a_bench(tmp_path), "labelling=20"]) == 0
    lines = capsys.readouterr().out.splitlines()
    hours = [float(word) for word in lines[1].replace("*", " ").split()]
    # 371 images x 2 tasks x 25 edited images at 8 a second, half as long again, and a minute for the start
    assert hours[4] == pytest.approx((371 * 2 * 25 / 8 * 1.5 + 60) / 3600, abs=0.006)
    rates = next(line for line in lines if line.startswith("rates:"))
    assert "sampling 8 samples/s (measured)" in rates
    assert "labelling 20 samples/s (given)" in rates
    assert "start 60 s (assumed)" in rates
    assert "measured on H100: sampling, probing, overhead, storage" in lines


def test_another_model_is_scaled_by_its_operations(tmp_path: Path, capsys: Any) -> None:
    words = ["plan", "sdxl", "output=s3://bucket/run", "--rates", file_of_a_bench(tmp_path)]
    assert main(words) == 0
    text = capsys.readouterr().out
    assert "measured on H100" in text.splitlines()[0]
    # counted: 26.6 TFLOP for a sample of Stable Diffusion, 370 for one of XL
    rate = float(text.partition("rates: sampling ")[2].split()[0])
    assert rate == pytest.approx(8 * 26.6 / 370, rel=0.01)
    assert "sampling was measured with CompVis/stable-diffusion-v1-4, 15 steps, and is scaled by the counted" in text


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"narrow": True, "device": "cpu"}, "of a rehearsal with narrow networks, which prices no run"),
        ({"version": 2}, "not a file that this version's `scenesweep bench gpu` wrote"),
        ({"rates": {}, "pieces": {"sampling": {"error": "out of memory"}}}, "holds no rate: sampling: out of memory"),
        ({"rates": MEASURED | {"overhead": -1}}, "overhead=-1: no rate"),
    ],
)
def test_a_file_that_prices_nothing_is_refused(
    changes: dict[str, object], expected: str, paper: list[str], tmp_path: Path, capsys: Any
) -> None:
    assert main(["plan", *paper, "--rates", file_of_a_bench(tmp_path, **changes)]) == 2
    error = capsys.readouterr().err
    assert expected in error
    assert error.count("\n") == 1


def test_what_ships_is_taken_without_being_named(
    paper: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    folder = tmp_path / "measured"
    folder.mkdir()
    monkeypatch.setattr(measured, "FOLDER", folder)
    assert measured.shipped() is None
    file_of_a_bench(folder)
    assert main(["plan", *paper, f"output={tmp_path / 'run'}"]) == 0
    assert "sampling, labelling, probing, overhead, storage measured on H100" in capsys.readouterr().out


def test_few_gpus_are_not_shown_twice() -> None:
    assert [cluster_costs.counts(gpus) for gpus in (1, 4, 8, 64)] == [[1], [1, 4], [1, 8], [1, 8, 64]]


def test_the_readme_shows_the_numbers_of_the_planner(paper: list[str]) -> None:
    readme = (Path(__file__).parents[3] / "cluster" / "README.md").read_text().partition("<!-- cost -->")[2]
    shown = [re.findall(r"[\d.]+\*?", line) for line in readme.splitlines() if re.match(r"\| \d", line)]
    lines = table.on_gpus(load(paper[0], paper[1:]), 64, Rates()).splitlines()
    assert shown == [re.findall(r"[\d.]+\*?", line) for line in lines[1:4]]
