"""The full pipeline on a tiny random model: resume, faults, the two executors, the command line."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

import storage
from support.probe_reference import average_precision
from support.tiny_runs import assert_same_scores, configured, copied, scores, settings, stored
from sweeps import pipeline
from sweeps.cli.main import main
from sweeps.config.load import load
from sweeps.runtime import machines
from sweeps.stages import intervene
from sweeps.stages.probe import missing as missing_probes
from sweeps.stages.sample import SampleTask, SampleWorker
from sweeps.stages.sample import missing as missing_shards

ROOT = Path(__file__).parents[2]


def test_every_probe_has_a_finite_row(finished):
    rows = storage.open(str(finished)).table("probes").to_pylist()
    assert len(rows) == 2 * 16 * 3 * 2
    for row in rows:
        assert row["status"] == "done"
        score = row["dice"] if row["task"] == "saliency" else row["rmse"]
        assert score is not None
        assert np.isfinite(score)
    images = storage.open(str(finished)).table("images")
    assert images.num_rows == len(rows) * 4


def test_probe_weights_interventions_and_report_exist(finished):
    store = storage.open(str(finished))
    for row in store.table("probes").to_pylist():
        assert store.exists(storage.probe_path(row["variant"], row["site"], row["step"], row["task"], "none", 0))
    rows = store.table("interventions").to_pylist()
    assert {row["control"] for row in rows} == {"edit", "none"}
    assert (finished / "report" / "index.html").stat().st_size > 50_000


@pytest.mark.parametrize("site", ["up.2.1", "mid.0"])
def test_scores_are_those_of_the_stored_probes_on_each_images_own_labels(finished, site):
    """Average precision and RMSE from the files alone, pixel by pixel: no label of another image can have been used."""
    store = storage.open(str(finished))
    splits = store.curation().to_pylist()
    train, test = ([row["sample"] for row in splits if row["split"] == name] for name in ("train", "test"))
    depth = store.read_labels("depth").astype(np.float64)
    depth = (depth - depth[train].mean()) / depth[train].std()
    masks = store.read_labels("saliency") > load("scenes", []).labels.threshold
    acts = store.read_activations("trained", site, 15).astype(np.float64)
    side, height = round(acts.shape[1] ** 0.5), depth.shape[1]
    scores = {}
    for task in ("saliency", "depth"):
        path = storage.probe_path("trained", site, 15, task, "none", 0)
        output = acts @ safetensors.numpy.load(store.get(path))["weight"].T.astype(np.float64)
        maps = output.reshape(len(acts), side, side, -1).repeat(height // side, 1).repeat(height // side, 2)
        for sample in test:
            if task == "depth":
                scores[task, sample] = np.sqrt(np.square(maps[sample, ..., 0] - depth[sample]).mean())
            else:
                scores[task, sample] = average_precision(maps[sample, ..., 1] - maps[sample, ..., 0], masks[sample])
    rows = [
        row
        for row in store.table("images").to_pylist()
        if (row["variant"], row["site"], row["step"]) == ("trained", site, 15)
    ]
    stored_scores = {(row["task"], row["sample"]): row["rmse" if row["task"] == "depth" else "ap"] for row in rows}
    assert len(set(scores.values())) == 2 * 4
    assert stored_scores == pytest.approx(scores, rel=1e-4, abs=1e-6)


def test_a_second_run_changes_no_byte(finished, tiny_pipeline, tmp_path, capsys):
    output = copied(finished, tmp_path / "again")
    config_before = {p: p.read_bytes() for p in output.rglob("*") if p.is_file()}
    assert main(["run", "scenes", *settings(tiny_pipeline, output)]) == 0
    assert "nothing to do" in capsys.readouterr().out
    after = {p: p.read_bytes() for p in output.rglob("*") if p.is_file()}
    changed = {str(p.relative_to(output)) for p in config_before if config_before[p] != after.get(p)}
    assert changed <= {"config.yaml", "manifest.json"}  # the output's own path is in them
    assert set(after) == set(config_before)


def chunk_of(output: Path, variant: str, shard: int) -> Path:
    """The file of up.2.1 at step 5."""
    return output / "activations.zarr" / variant / "up.2.1" / "activations" / "c" / str(shard) / "4" / "0" / "0"


def test_damaged_shards_are_redone_and_nothing_else(sampled, tiny_pipeline, tmp_path):
    output = copied(sampled, tmp_path / "damaged")
    cut = chunk_of(output, "trained", 1)
    cut.write_bytes(cut.read_bytes()[:-9])
    chunk_of(output, "trained", 2).unlink()
    (output / "shards" / "sample" / "random" / "00001.json").unlink()
    shutil.rmtree(chunk_of(output, "random", 2).parents[2])
    intact = {p: p.stat().st_mtime_ns for p in (output / "activations.zarr").glob("*/*/activations/c/0/*/0/0")}
    assert len(intact) == 2 * 16 * 15

    config = configured(tiny_pipeline, output)
    damaged = [SampleTask(variant, shard) for variant in ("trained", "random") for shard in (1, 2)]
    assert missing_shards(pipeline.prepare(config)) == damaged
    pipeline.execute(config, ("sample",))
    assert stored(output) == stored(sampled)
    assert {p: p.stat().st_mtime_ns for p in intact} == intact


def test_a_flipped_bit_is_found_by_verify_and_repaired(sampled, tiny_pipeline, tmp_path, capsys):
    output = copied(sampled, tmp_path / "flipped")
    chunk = output / "activations.zarr" / "trained" / "mid.0" / "activations" / "c" / "0" / "3" / "0" / "0"
    data = bytearray(chunk.read_bytes())
    data[100] ^= 1
    chunk.write_bytes(bytes(data))
    assert main(["verify", str(output), "--repair", "--recompute", "0"]) == 1
    assert "mid.0" in capsys.readouterr().out
    assert main(["sample", "scenes", *settings(tiny_pipeline, output)]) == 0
    assert stored(output) == stored(sampled)
    assert main(["verify", str(output), "--recompute", "0"]) == 0
    assert "0 disagreements" in capsys.readouterr().out


def test_finished_probes_are_not_fitted_again(finished, tiny_pipeline, tmp_path):
    output = copied(finished, tmp_path / "more")
    config = configured(tiny_pipeline, output, "sweep.steps=[1,2,3,15]")
    missing = missing_probes(pipeline.prepare(config))
    assert {probe.step for probe in missing} == {3}
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


def test_edits_at_another_guidance_are_separate_rows_and_made_once(finished, tiny_pipeline, tmp_path):
    output = copied(finished, tmp_path / "run")
    config = configured(tiny_pipeline, output, "interventions.guidances=[1,3]")
    run = pipeline.prepare(config)
    assert [(t.experiment, t.guidance) for t in intervene.missing(run)] == [("guidance", 1.0)]
    assert pipeline.execute(config, ("intervene",)).failed == {}
    assert intervene.missing(run) == []
    rows = run.store.table("interventions", run.hashes.intervene).to_pylist()
    assert {(r["experiment"], r["guidance"]) for r in rows} == {("interventions", 3.0), ("guidance", 1.0)}


@pytest.mark.chaos
def test_a_driver_killed_five_times_fits_no_probe_twice(finished, tiny_pipeline, tmp_path):
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
    pipeline.execute(configured(tiny_pipeline, output, "probe.lr=0.02", "sweep.steps=[1]"), ("probe",))
    table = storage.open(str(output)).table("probes")
    assert table.num_rows == 2 * 16 * 3 * 2 + 2 * 16 * 2
    assert len(set(table["stage_hash"].to_pylist())) == 2


def test_an_output_with_other_sampling_settings_is_refused(sampled, tiny_pipeline, tmp_path, capsys):
    output = copied(sampled, tmp_path / "kept")
    before = stored(output)
    assert main(["run", "scenes", *settings(tiny_pipeline, output, "sampling.guidance=5")]) == 2
    line = capsys.readouterr().err
    assert "sampling.guidance: 3.0 -> 5.0" in line
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
        (["run", "scenes", "output=full"], "its disk has"),
        (["status", "nowhere"], "nowhere"),
        (["verify", "nowhere"], "nowhere"),
    ],
)
def test_wrong_input_is_one_line_and_code_2(words, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    if "output=full" in words:
        monkeypatch.setattr("storage.backends.files.LocalFiles.free", lambda self: 1000)
    assert main(words) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_unwritable_output_is_refused_for_a_plain_user(tmp_path):
    folder = tmp_path / "locked"
    folder.mkdir()
    folder.chmod(0o555)
    if os.geteuid() == 0:
        pytest.skip("root ignores file modes; test_faults has the same for root")
    with pytest.raises(ValueError, match="cannot write"):
        pipeline.prepare(load("scenes", [f"output={folder / 'x'}"]))


def test_a_broken_shard_fails_alone(sampled, tiny_pipeline, tmp_path, monkeypatch, capsys):
    output = copied(sampled, tmp_path / "broken")
    for shard in ("trained/00002", "random/00001", "random/00002"):
        (output / "shards" / "sample" / f"{shard}.json").unlink()
    sample_shard = SampleWorker.__call__

    def broken(self, task):
        if task == SampleTask("random", 1):
            raise RuntimeError("broken")
        return sample_shard(self, task)

    monkeypatch.setattr(SampleWorker, "__call__", broken)
    words = ["sample", "scenes", *settings(tiny_pipeline, output, "sampling.retries=1")]
    assert main(words) == 1
    error = capsys.readouterr().err
    assert "sample/random/00001" in error
    assert "resume with: scenesweep sample scenes" in error
    store = storage.open(str(output))
    assert (store.completed("sample", "trained"), store.completed("sample", "random")) == ({0, 1, 2}, {0, 2})
    monkeypatch.setattr(SampleWorker, "__call__", sample_shard)
    assert main(words) == 0
    assert main(["status", str(output)]) == 0
    assert stored(output) == stored(sampled)


@pytest.mark.slow
def test_ray_gives_the_same_bytes_and_rows(finished, tiny_pipeline, tmp_path, ray_local):
    output = tmp_path / "ray"
    config = configured(tiny_pipeline, output, "ray.address=local")
    result = pipeline.execute(config)
    assert result.failed == {}
    assert stored(output) == stored(finished)
    assert_same_scores(output, finished)
    (machine,) = machines.read(storage.open(str(output)))
    assert (machine["nodes"], machine["cpus"], machine["gpus"]) == (1, 2, 0)
    assert machine["workers"].keys() == {"sample", "label", "probe", "intervene"}
    assert max(machine["workers"].values()) == 2
    assert "Machines on which the run was executed" in (output / "report" / "index.html").read_text()


@pytest.mark.chaos
def test_a_driver_killed_three_times_resumes_to_the_same_bytes(finished, tiny_pipeline, tmp_path):
    """SIGKILL at random moments; the same command at last ends with the bytes of an undisturbed run."""
    output = tmp_path / "killed"
    words = [sys.executable, "-m", "sweeps", "run", "scenes", *settings(tiny_pipeline, output)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    shards = 12 * 2 / 4
    complete: dict[Path, int] = {}
    for goal in np.sort(np.random.default_rng(1).uniform(0.1, 0.95, 3)) * shards:
        process = subprocess.Popen(words, cwd=ROOT, env=environment, stderr=subprocess.DEVNULL)
        while process.poll() is None and len(list(output.glob("shards/sample/*/*.json"))) < goal:
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
        complete = {p: p.stat().st_mtime_ns for p in output.glob("shards/sample/*/*.json")} | complete
    again = subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert again.returncode == 0, again.stderr
    assert stored(output) == stored(finished)
    assert {p: p.stat().st_mtime_ns for p in complete} == complete, "a complete shard was redone"
    assert len(scores(output)) == 2 * 16 * 3 * 2
    assert storage.open(str(output)).table("probes", current=False).num_rows == 2 * 16 * 3 * 2


def test_one_prompt_for_play_and_its_recipe_give_the_same_pixels(finished, tiny_pipeline, tmp_path, capsys):
    words = ["intervene", "scenes", *settings(tiny_pipeline, finished)]
    first, again = tmp_path / "first", tmp_path / "again"
    request = ["--prompt", "a large red sphere on a green floor under a sky", "--task", "depth", "--move", "9", "-5"]
    assert main([*words, *request, "--seed", "4", "--to", str(first)]) == 0
    assert "RMSE" in capsys.readouterr().out
    assert main([*words, "--recipe", str(first / "recipe.yaml"), "--to", str(again)]) == 0
    assert (again / "00-edit.png").read_bytes() == (first / "00-edit.png").read_bytes()
    assert (first / "00-edit.png").read_bytes() != (first / "before.png").read_bytes()
