"""The whole road on a tiny random model: resume, faults, the two executors, the command line."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import storage
from support.tiny_runs import configured, scores, settings, stored
from sweeps import pipeline
from sweeps.cli.main import main
from sweeps.config.load import load
from sweeps.runtime import machines as cluster_facts
from sweeps.stages import intervene as intervene_stage
from sweeps.stages import probe as probe_stage
from sweeps.stages import sample as sample_stage

ROOT = Path(__file__).parents[2]


def copied(finished: Path, target: Path) -> Path:
    shutil.copytree(finished, target)
    return target


def assert_same_scores(output: Path, other: Path) -> None:
    ours, theirs = scores(output), scores(other)
    assert ours.keys() == theirs.keys()
    for key in ours:
        for a, b in zip(ours[key], theirs[key], strict=True):
            assert a == b or a == pytest.approx(b, rel=1e-6, abs=1e-6), key


def test_every_cell_has_a_finite_row(finished):
    rows = storage.open(str(finished)).table("probes").to_pylist()
    assert len(rows) == 2 * 16 * 3 * 2
    for row in rows:
        assert row["status"] == "done"
        score = row["dice"] if row["task"] == "saliency" else row["rmse"]
        assert score is not None
        assert np.isfinite(score)
    images = storage.open(str(finished)).table("images")
    assert images.num_rows == len(rows) * 4


def test_probe_weights_are_there_before_their_rows(finished):
    store = storage.open(str(finished))
    for row in store.table("probes").to_pylist():
        path = storage.probe_path(row["variant"], row["site"], row["step"], row["task"], "none", 0)
        assert store.exists(path)


def test_interventions_and_report_are_there(finished):
    store = storage.open(str(finished))
    rows = store.table("interventions").to_pylist()
    assert {row["control"] for row in rows} == {"edit", "none"}
    assert (finished / "report" / "index.html").stat().st_size > 50_000


def test_verify_finds_nothing_wrong(finished, capsys):
    assert main(["verify", str(finished)]) == 0
    assert "0 disagreements" in capsys.readouterr().out


def test_a_second_run_changes_no_byte(finished, tiny_pipeline, tmp_path, capsys):
    output = copied(finished, tmp_path / "again")
    config_before = {p: p.read_bytes() for p in output.rglob("*") if p.is_file()}
    assert main(["run", "scenes", *settings(tiny_pipeline, output)]) == 0
    assert "nothing to do" in capsys.readouterr().out
    after = {p: p.read_bytes() for p in output.rglob("*") if p.is_file()}
    changed = {str(p.relative_to(output)) for p in config_before if config_before[p] != after.get(p)}
    assert changed <= {"config.yaml", "manifest.json"}  # the output's own path is in them
    assert set(after) == set(config_before)


@pytest.mark.parametrize("damage", ["chunk cut short", "chunk gone", "record gone", "record without data"])
def test_damaged_shards_are_redone_and_nothing_else(finished, tiny_pipeline, tmp_path, damage):
    output = copied(finished, tmp_path / "hurt")
    chunk = output / "activations.zarr" / "random" / "up.2.1" / "c" / "1" / "4" / "0" / "0"
    record = output / "shards" / "sample" / "random" / "00001.json"
    assert chunk.exists()
    assert record.exists()
    if damage == "chunk cut short":
        chunk.write_bytes(chunk.read_bytes()[:-9])
    elif damage == "chunk gone":
        chunk.unlink()
    elif damage == "record gone":
        record.unlink()
    else:
        shutil.rmtree(chunk.parents[2])
    run = pipeline.prepare(configured(tiny_pipeline, output))
    assert sample_stage.missing(run) == [sample_stage.SampleTask("random", 1)]
    pipeline.execute(configured(tiny_pipeline, output), ("sample",))
    assert stored(output) == stored(finished)


def test_a_flipped_bit_is_found_by_verify_and_mended(finished, tiny_pipeline, tmp_path, capsys):
    output = copied(finished, tmp_path / "flipped")
    chunk = output / "activations.zarr" / "trained" / "mid.0" / "c" / "0" / "3" / "0" / "0"
    data = bytearray(chunk.read_bytes())
    data[100] ^= 1
    chunk.write_bytes(bytes(data))
    assert main(["verify", str(output), "--repair"]) == 1
    assert "mid.0" in capsys.readouterr().out
    assert main(["sample", "scenes", *settings(tiny_pipeline, output)]) == 0
    assert stored(output) == stored(finished)
    assert main(["verify", str(output)]) == 0


def test_finished_cells_are_not_fitted_again(finished, tiny_pipeline, tmp_path):
    output = copied(finished, tmp_path / "more")
    config = configured(tiny_pipeline, output, "sweep.steps=[1,2,3,15]")
    wanted = probe_stage.missing(pipeline.prepare(config))
    assert {cell.step for cell in wanted} == {3}
    pipeline.execute(config, ("probe",))
    rows = storage.open(str(output)).table("probes", current=False).to_pylist()
    assert len(rows) == 2 * 16 * 4 * 2
    before, after = scores(finished), scores(output)
    assert all(after[key] == value for key, value in before.items())


def test_controls_of_the_surface_have_rows_at_the_chosen_sites(finished, tiny_pipeline, tmp_path):
    output = copied(finished, tmp_path / "run")
    more = ["sweep.controls=[none,surface_point,surface]", "sweep.control_sites=[up.3.0,mid.0]"]
    result = pipeline.execute(configured(tiny_pipeline, output, *more), ("probe",))
    assert result.failed == {}
    rows = [r for r in storage.open(str(output)).table("probes").to_pylist() if r["control"] != "none"]
    found = {(r["variant"], r["site"], r["control"], r["channels"]) for r in rows}
    channels = {"surface_point": 2 * 4 + 2, "surface": 2 * 4 * 25 + 2}
    assert found == {("trained", site, c, n) for site in ("up.3.0", "mid.0") for c, n in channels.items()}
    assert len(rows) == 2 * 2 * 3 * 2
    assert all(r["status"] == "done" and np.isfinite(r["train_loss"]) for r in rows)


def test_edits_at_another_guidance_are_told_apart_and_made_once(finished, tiny_pipeline, tmp_path):
    output = copied(finished, tmp_path / "run")
    config = configured(tiny_pipeline, output, "interventions.guidances=[1,1.75]")
    run = pipeline.prepare(config)
    assert [(t.experiment, t.guidance) for t in intervene_stage.missing(run)] == [("guidance", 1.0)]
    assert pipeline.execute(config, ("intervene",)).failed == {}
    assert intervene_stage.missing(run) == []
    rows = run.store.table("interventions", run.hashes.intervene).to_pylist()
    assert {(r["experiment"], r["guidance"]) for r in rows} == {("interventions", 1.75), ("guidance", 1.0)}


@pytest.mark.slow
@pytest.mark.chaos
def test_a_driver_killed_five_times_fits_no_cell_twice(finished, tiny_pipeline, tmp_path):
    output = copied(finished, tmp_path / "run")
    for name in ("results", "probes"):
        shutil.rmtree(output / name)
    words = [sys.executable, "-m", "sweeps", "probe", "scenes", *settings(tiny_pipeline, output)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    parts = output / "results" / "probes"
    goals = np.sort(np.random.default_rng(5).choice(np.arange(1, 31), 5, replace=False))
    for goal in goals:
        process = subprocess.Popen(words, cwd=ROOT, env=environment, stderr=subprocess.DEVNULL)
        while process.poll() is None and len(list(parts.glob("*.parquet"))) < goal:
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, check=False).returncode == 0
    assert_same_scores(output, finished)
    every_row = storage.open(str(output)).table("probes", current=False)
    assert every_row.num_rows == len(scores(finished))


def test_other_probe_settings_leave_the_old_rows(finished, tiny_pipeline, tmp_path):
    output = copied(finished, tmp_path / "other")
    config = configured(tiny_pipeline, output, "probe.lr=0.02")
    pipeline.execute(config, ("probe",))
    table = storage.open(str(output)).table("probes")
    assert table.num_rows == 2 * 2 * 16 * 3 * 2
    assert len(set(table["stage_hash"].to_pylist())) == 2


def test_an_output_with_other_sampling_settings_is_refused(finished, tiny_pipeline, tmp_path, capsys):
    output = copied(finished, tmp_path / "held")
    before = stored(output)
    assert main(["run", "scenes", *settings(tiny_pipeline, output, "sampling.guidance=5")]) == 2
    line = capsys.readouterr().err
    assert "sampling.sampling.guidance: 2.0 -> 5.0" in line or "guidance" in line
    assert line.count("\n") == 1
    assert stored(output) == before


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["run", "scnes"], "did you mean 'scenes'"),
        (["run", "scenes", "sampling.sites=[up.9.9]"], "no site 'up.9.9'"),
        (["run", "scenes", "prompts.source=nowhere.csv"], "no file nowhere.csv"),
        (["run", "scenes", "model.name=/no/such/model"], "no directory"),
        (["run", "output=/dev/null/here"], "output: cannot write"),
        (["run", "scenes", "prompts.count=100000000"], "its disk has"),
        (["status", "nowhere"], "nowhere"),
        (["verify", "nowhere"], "nowhere"),
    ],
)
def test_wrong_input_is_one_line_and_code_2(words, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    if "prompts.count=100000000" in words:
        monkeypatch.setattr("probing.dataset.prompts._scenes", lambda count, seed: _Many(count))
    assert main(words) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


class _Many:
    """Stands for very many prompts without making them."""

    def __init__(self, count: int) -> None:
        self.count = count

    def __iter__(self):
        from probing.dataset.prompts import Prompt

        return iter([Prompt("a red box", 1)] * 3_000_000)


def test_unwritable_output_is_refused_for_a_plain_user(tmp_path):
    folder = tmp_path / "locked"
    folder.mkdir()
    folder.chmod(0o555)
    if os.geteuid() == 0:
        pytest.skip("root ignores file modes")
    with pytest.raises(ValueError, match="cannot write"):
        pipeline.prepare(load("scenes", [f"output={folder / 'x'}"]))


def test_a_broken_shard_fails_alone(tiny_pipeline, tmp_path, monkeypatch, capsys):
    output = tmp_path / "poison"
    whole = sample_stage.SampleWorker.__call__

    def call(self, task):
        if task == sample_stage.SampleTask("random", 1):
            raise RuntimeError("poison")
        return whole(self, task)

    monkeypatch.setattr(sample_stage.SampleWorker, "__call__", call)
    words = ["sample", "scenes", *settings(tiny_pipeline, output, "sampling.retries=1")]
    assert main(words) == 1
    error = capsys.readouterr().err
    assert "sample/random/00001" in error
    assert "resume with: scenesweep sample scenes" in error
    assert len(storage.open(str(output)).completed("sample", "random")) == 2
    monkeypatch.setattr(sample_stage.SampleWorker, "__call__", whole)
    assert main(words) == 0
    assert main(["status", str(output)]) == 0


@pytest.mark.slow
def test_ray_gives_the_same_bytes_and_rows(finished, tiny_pipeline, tmp_path, ray_local):
    output = tmp_path / "ray"
    config = configured(tiny_pipeline, output, "ray.address=local")
    result = pipeline.execute(config)
    assert result.failed == {}
    assert stored(output) == stored(finished)
    assert_same_scores(output, finished)
    (told,) = cluster_facts.read(storage.open(str(output)))
    assert (told["nodes"], told["cpus"], told["gpus"]) == (1, 2, 0)
    assert told["workers"].keys() == {"sample", "label", "probe", "intervene"}
    assert max(told["workers"].values()) == 2
    assert "Machines that the run was carried out on" in (output / "report" / "index.html").read_text()


@pytest.mark.slow
@pytest.mark.chaos
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_a_killed_driver_resumes_to_the_same_bytes(finished, tiny_pipeline, tmp_path, seed):
    """SIGKILL at a random moment; the same command again ends where an undisturbed run does."""
    output = tmp_path / "killed"
    words = [sys.executable, "-m", "sweeps", "run", "scenes", *settings(tiny_pipeline, output)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    total = 12 * 2 / 4
    goal = np.random.default_rng(seed).uniform(0.1, 0.95) * total
    process = subprocess.Popen(words, cwd=ROOT, env=environment, stderr=subprocess.DEVNULL)
    while process.poll() is None and len(list(output.glob("shards/sample/*/*.json"))) < goal:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    complete = {p: p.stat().st_mtime_ns for p in output.glob("shards/sample/*/*.json")}
    again = subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert again.returncode == 0, again.stderr
    assert stored(output) == stored(finished)
    assert {p: p.stat().st_mtime_ns for p in complete} == complete, "a complete shard was redone"
    keys = [json.dumps(k) for k in scores(output)]
    assert len(keys) == len(set(keys)) == 2 * 16 * 3 * 2


def test_one_prompt_for_play_and_its_recipe_give_the_same_pixels(finished, tiny_pipeline, tmp_path, capsys):
    words = ["intervene", "scenes", *settings(tiny_pipeline, finished)]
    first, again = tmp_path / "first", tmp_path / "again"
    wish = ["--prompt", "a large red sphere on a green floor under a sky", "--task", "depth", "--move", "9", "-5"]
    assert main([*words, *wish, "--seed", "4", "--to", str(first)]) == 0
    assert "RMSE" in capsys.readouterr().out
    assert main([*words, "--recipe", str(first / "recipe.yaml"), "--to", str(again)]) == 0
    assert (again / "00-edit.png").read_bytes() == (first / "00-edit.png").read_bytes()
    assert (first / "00-edit.png").read_bytes() != (first / "before.png").read_bytes()
