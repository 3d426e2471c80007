"""The experiments beside the grid on a tiny random model: rows, resume, and equality with what sampling saw."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

import storage
from probing.diffusion.model import load as load_model
from probing.diffusion.replay import replay_network
from probing.diffusion.sampling import entering, sample
from probing.probes.converged import fit_converged
from support import tiny_model, tiny_runs
from support.tiny_runs import copied
from sweeps import pipeline
from sweeps.cli.main import main
from sweeps.config.experiments import NAMES
from sweeps.config.load import load, presets
from sweeps.runtime import experiments
from sweeps.runtime.grid import ProbeSpec, pack
from sweeps.runtime.layout import trained_at
from sweeps.runtime.run import reopen
from sweeps.stages import curate, replay
from sweeps.stages.experiments import converged, emergence, renders, stage
from sweeps.stages.probe import experiment_job
from sweeps.stages.probe import job as probe_job
from sweeps.stages.probe_trial import site_targets
from sweeps.stages.probe_tune import run_trial

EXPERIMENTS = [
    "interventions.tasks=[]", f"experiments.names=[{','.join(load('scenes', []).experiments.names)}]",
    "experiments.vae_steps=[1,15]", "experiments.conv_steps=[15]", "experiments.emergence_images=2",
    "experiments.emergence_steps=[1,15]", "experiments.emergence_shown=1", "experiments.transfer_sites=[up.3.2]",
    "experiments.converged_sites=[up.3.2]",
]  # fmt: skip


def configured(model: Path, output: Path, *more: str):
    return tiny_runs.configured(model, output, *EXPERIMENTS, *more)


@pytest.fixture(scope="module")
def finished(finished: Path, tiny_pipeline: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shared finished run with the experiments beside its grid."""
    output = copied(finished, tmp_path_factory.mktemp("runs") / "experiments")
    result = pipeline.execute(configured(tiny_pipeline, output), ("sample", "label", "curate", "probe", "experiments"))
    assert result.failed == {}
    return output


def opened(config):
    return reopen(config)


def rows(output: Path, table: str, experiment: str) -> list[dict]:
    return [r for r in storage.open(str(output)).table(table).to_pylist() if r["experiment"] == experiment]


def test_every_experiment_has_its_rows(finished: Path) -> None:
    probes = {name: rows(finished, "probes", name) for name in ("vae", "conv", "smoothness", "transfer")}
    assert {(r["site"], r["step"], r["task"]) for r in probes["vae"]} == {
        ("vae.mid", step, task) for step in (1, 15) for task in ("saliency", "depth")
    }
    assert len(probes["conv"]) == 17 * 2
    assert {(r["step"], r["task"]) for r in probes["smoothness"]} == {(15, "depth")}
    assert len(probes["smoothness"]) == 16
    assert len(probes["transfer"]) == 3 * 3 * 2
    assert all(r["status"] == "done" for found in probes.values() for r in found)
    seen = rows(finished, "images", "emergence")
    assert {(r["site"], r["step"]) for r in seen} == {(f"labeller.{k}", s) for k in ("xt", "x0") for s in (1, 15)}
    assert len(seen) == 2 * 2 * 2 * 2


def test_converged_references_are_those_of_the_stored_activations(finished: Path, tiny_pipeline: Path) -> None:
    found = rows(finished, "probes", "converged")
    assert {(r["site"], r["step"], r["task"], r["status"]) for r in found} == {
        ("up.3.2", 15, task, "done") for task in ("saliency", "depth")
    }
    run = opened(configured(tiny_pipeline, finished))
    samples, split = curate.kept(run)
    job = probe_job(run)
    acts = run.store.read_activations("trained", "up.3.2", 15, samples.tolist())
    mine = fit_converged(acts[None], [15], (16, 16), site_targets(job, job.site("up.3.2")), split)
    for result in mine:
        row = next(r for r in found if r["task"] == result.spec.task)
        assert row["test_loss"] == pytest.approx(result.row["test_loss"], rel=1e-9)
    assert len(rows(finished, "images", "converged")) == 2 * 4
    assert converged.missing(run) == []


def test_probes_on_renders_are_scored_against_the_renderer(finished: Path, tiny_pipeline: Path, tmp_path: Path) -> None:
    output = tmp_path / "truth"
    shutil.copytree(finished, output)
    names = "experiments.names=[truth]", "experiments.truth_sites=[up.3.2]", "experiments.truth_steps=[15]"
    run = opened(configured(tiny_pipeline, output, *names))
    assert [task.step for task in renders.missing(run)] == [15]
    worker = renders.worker(run)()
    worker(renders.TruthTask(15))
    found = rows(output, "probes", "truth")
    assert {(r["site"], r["task"], r["n_train"], r["n_test"]) for r in found} == {
        ("up.3.2", task, 5, 4) for task in ("saliency", "depth")
    }
    seen = [r for r in rows(output, "images", "truth") if r["task"] == "depth"]
    assert [r["sample"] for r in seen] == list(worker.job.samples[8:])
    depth = worker.renders.depths.astype(np.float64)
    standard = (depth - depth[:5].mean()) / depth[:5].std()
    cells = standard[8:].reshape(4, 16, 8, 16, 8)
    oracle = np.sqrt(cells.var((2, 4)).mean((1, 2)))
    assert [r["oracle_rmse"] for r in seen] == pytest.approx(oracle, rel=1e-4)
    assert renders.missing(run) == []


def test_renders_for_probing_are_no_renders_of_training() -> None:
    from probing.dataset import prompts
    from probing.scenes import truth, world

    others = [*world.RENDER_SEEDS.values(), prompts.FIRST_SCENE, world.CARD_SEED]
    assert all(abs(world.TRUTH_SEED - first) >= 5_000_000 for first in others)
    model = tiny_model.model()
    clean = torch.zeros(2, *model.latent_shape)
    levels = [truth.noised(model, clean, [1, 2], step, 15).std() for step in (1, 8, 15)]
    assert levels == sorted(levels, reverse=True)


def test_truth_is_refused_where_nothing_can_be_rendered() -> None:
    with pytest.raises(ValueError, match=r"experiments\.names=truth"):
        renders.check(load("paper", ["experiments.names=[truth]"]))


def test_ablations_leave_the_main_probes_alone(finished: Path) -> None:
    store = storage.open(str(finished))
    plain, smooth = (
        store.get(f"{folder}probes/trained/up.3.2/15.depth.none.0.safetensors")
        for folder in ("", "experiments/smoothness/")
    )
    assert plain != smooth
    assert len(rows(finished, "probes", "grid")) == 2 * 16 * 3 * 2


def test_a_probe_transferred_to_its_own_step_scores_what_it_scored(finished: Path) -> None:
    mine = [r for r in rows(finished, "probes", "grid") if (r["variant"], r["site"]) == ("trained", "up.3.2")]
    own = {(r["step"], r["task"]): r for r in mine}
    for row in rows(finished, "probes", "transfer"):
        if trained_at(row["control"]) == row["step"]:
            score = "dice" if row["task"] == "saliency" else "rmse"
            assert row[score] == pytest.approx(own[row["step"], row["task"]][score], rel=1e-4, abs=1e-5)


def test_the_finished_latent_is_labelled_as_the_finished_image(finished: Path) -> None:
    for row in rows(finished, "images", "emergence"):
        if (row["site"], row["step"]) == ("labeller.xt", 15):
            assert row["dice"] == pytest.approx(1) if row["task"] == "saliency" else row["rmse"] < 1e-3


def test_nothing_is_done_twice_and_more_steps_are_added(finished: Path, tiny_pipeline: Path, tmp_path: Path) -> None:
    output = tmp_path / "more"
    shutil.copytree(finished, output)
    config = configured(tiny_pipeline, output)
    run = opened(config)
    assert experiments.missing(run) == []
    assert replay.missing(run) == []
    assert stage.missing(run) == []
    wider = opened(configured(tiny_pipeline, output, "experiments.conv_steps=[1,15]", "experiments.emergence_images=3"))
    assert {probe.step for probe in experiments.missing(wider) if probe.experiment == "conv"} == {1}
    assert {task.steps for task in replay.missing(wider)} == {(1,)}
    assert len(emergence.missing(wider)) == 1


def test_a_lost_family_chunk_is_regenerated_with_the_same_bytes(
    finished: Path, tiny_pipeline: Path, tmp_path: Path
) -> None:
    output = tmp_path / "hurt"
    shutil.copytree(finished, output)
    chunk = next(
        (output / "families" / "activations.zarr" / "trained" / "vae.mid" / "activations" / "c" / "1").rglob("0")
    )
    chunk = next(p for p in chunk.parents[0].rglob("*") if p.is_file())
    before = chunk.read_bytes()
    chunk.unlink()
    assert main(["verify", str(output), "--repair", "--recompute", "0"]) == 1
    for part in (output / "results" / "probes").glob("*.parquet"):
        if "vae" in pq.read_table(part)["experiment"].to_pylist():
            part.unlink()
    run = opened(configured(tiny_pipeline, output))
    assert [(t.family, t.shard) for t in replay.missing(run)] == [("vae", 1)]
    pipeline.execute(configured(tiny_pipeline, output), ("probe",))
    assert chunk.read_bytes() == before
    assert main(["verify", str(output), "--recompute", "0"]) == 0


def test_clean_drops_the_families_too(finished: Path, tmp_path: Path) -> None:
    output = tmp_path / "clean"
    shutil.copytree(finished, output)
    assert main(["clean", str(output)]) == 0
    left = list((output / "families" / "activations.zarr").rglob("c/*/*/*/*"))
    assert not left


def test_a_retried_trial_of_an_experiment_leaves_out_its_finished_probes(finished: Path, tiny_pipeline: Path) -> None:
    run = opened(configured(tiny_pipeline, finished))
    main = probe_job(run)
    job = replace(main, dry=True, experiments=tuple(experiment_job(run, main, n) for n in ("conv", "vae")))
    job = replace(job, experiments=tuple(replace(one, dry=True) for one in job.experiments))
    (trial,) = pack([ProbeSpec("trained", "vae.mid", step, "depth", experiment="vae") for step in (1, 15)], ["variant"])
    arguments = {"job": job, "trials": {trial.name: trial}, "trial": trial.name, "leases": {}}
    assert run_trial(arguments)["cells"] == 2
    assert run_trial(arguments | {"again": 1})["cells"] == 0
    unknown = replace(job, experiments=tuple(replace(one, stage_hash="0" * 16) for one in job.experiments))
    assert run_trial(arguments | {"again": 1, "job": unknown})["cells"] == 2


def test_another_smoothness_redoes_that_experiment_alone(finished: Path, tiny_pipeline: Path) -> None:
    run = opened(configured(tiny_pipeline, finished, "experiments.smoothness=0.5"))
    assert {probe.experiment for probe in experiments.missing(run)} == {"smoothness"}


def test_transfer_leaves_out_sites_that_are_not_recorded(finished: Path, tiny_pipeline: Path) -> None:
    def chosen(*more: str) -> list[str]:
        config = configured(tiny_pipeline, finished, *more)
        run = opened(config)
        return [site.name for site in experiments.sites(config, run.model_info, "transfer")]

    assert chosen("experiments.transfer_sites=[blocks]") == [
        "down.0.1", "down.1.1", "down.2.1", "mid.0", "up.1.2", "up.2.2", "up.3.2",
    ]  # fmt: skip
    assert chosen("experiments.transfer_sites=[up.2.0,up.3.2]", "sampling.sites=[up.3.2]") == ["up.3.2"]
    with pytest.raises(ValueError, match=r"no site 'up\.9\.9'"):
        chosen("experiments.transfer_sites=[up.9.9]")


def test_a_replayed_step_gives_what_sampling_recorded(finished: Path, tiny_pipeline: Path) -> None:
    model = load_model(configured(tiny_pipeline, finished).model)
    store = storage.open(str(finished))
    table = store.samples().to_pydict()
    condition = model.conditions(table["prompt"][:4], 2.0, conditional_only=True)
    sites = model.sites()[-3:]
    for step in (1, 15):
        latents = (
            entering(model, table["seed"][:4], 15)
            if step == 1
            else torch.from_numpy(store.read_latents("trained", step - 1, [0, 1, 2, 3])[0])
        )
        seen: dict[str, np.ndarray] = {}
        replay_network(model, condition, latents, step, 15, sites, seen.__setitem__)
        for site in sites:
            recorded = store.read_activations("trained", site.name, step, [0, 1, 2, 3]).astype(np.float32)
            np.testing.assert_allclose(seen[site.name].astype(np.float32), recorded, rtol=4e-3, atol=4e-3)


def test_replay_reads_convolutions_as_a_hook_in_the_loop_does() -> None:
    from contextlib import contextmanager

    from probing.diffusion.hooks import record

    model = tiny_model.model()
    sites = model.sites("conv")
    seen, before = {}, {}

    @contextmanager
    def around(step: int):
        with record(model.network, sites, lambda site, out: seen.__setitem__((step, site.name), out[1:])):
            yield

    def note(event) -> None:
        before[event.step] = event.before.clone()

    sample(model, ["a red box"], [3], steps=3, guidance=2.0, around=around, on_step=note, decode=False)
    again: dict[str, np.ndarray] = {}
    replay_network(
        model, model.conditions(["a red box"], 2.0, conditional_only=True), before[2], 2, 3, sites, again.__setitem__
    )
    assert len(again) == 17
    for name, values in again.items():
        np.testing.assert_allclose(values, seen[2, name].numpy(), rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("experiments.names=[vea]", "experiments.names='vea'"),
        ("experiments.conv_steps=[16]", "experiments.conv_steps=16"),
        ("experiments.smoothness=0", "experiments.smoothness"),
        ("experiments.emergence_images=-1", "experiments.emergence_images"),
    ],
)
def test_wrong_settings_are_named(setting: str, message: str) -> None:
    with pytest.raises(ValueError, match=message.replace("[", r"\[")):
        load("scenes", [setting])


def test_the_full_preset_has_everything() -> None:
    assert "scenes-full" in presets()
    config = load("scenes-full", [])
    assert set(config.experiments.names) == set(NAMES)
    assert config.experiments.conv_steps == config.experiments.vae_steps == []
    assert config.experiments.emergence_images == 0
    scenes = load("scenes", [])
    assert replace(config.probe) == scenes.probe
    assert config.curation == scenes.curation


def test_all_without_a_full_preset_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "paper", "--all"]) == 2
    assert "--all: there is no preset 'paper-full'" in capsys.readouterr().err
