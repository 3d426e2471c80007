"""Files that a run is made of: a changed one is refused by name; a run that holds nothing yet is begun anew."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

import storage
from probing.labelling import registry
from support.tiny_runs import settings
from sweeps import pipeline
from sweeps.cli.main import main
from sweeps.config.load import load
from sweeps.runtime import inputs
from sweeps.stages.sample import SampleWorker

TINY = ["prompts.count=4", "sampling.shard=2", "sampling.variants=[trained]", "sampling.sites=[up.3.2]",
        "curation.train=2", "curation.val=1", "curation.test=1", "interventions.tasks=[]"]  # fmt: skip


@pytest.fixture
def model(tiny_pipeline: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_pipeline, tmp_path / "model"))


def snapshot(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def refused(words: list[str], output: Path, capsys: pytest.CaptureFixture[str], verb: str = "sample") -> str:
    """The line of a refusal, by `plan` and by the verb; fails unless nothing in the output has changed."""
    before = snapshot(output)
    capsys.readouterr()
    lines = []
    for name in ("plan", verb):
        assert main([name, *words]) == 2
        lines.append(capsys.readouterr().err)
        assert lines[-1].count("\n") == 1
    assert snapshot(output) == before
    assert lines[0].partition(": ")[2] == lines[1].partition(": ")[2]
    return lines[1]


def test_files_of_the_model(model, tmp_path, capsys):
    output = tmp_path / "out"
    words = ["scenes", *settings(model, output, *TINY)]
    assert main(["sample", *words]) == 0
    assert main(["sample", *words]) == 0
    unet = next((model / "unet").glob("*.safetensors"))
    assert unet.stat().st_size > 1 << 20
    with unet.open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        last = file.read(1)
        file.seek(-1, os.SEEK_END)
        file.write(bytes([last[0] ^ 1]))
    name = f"model.name: unet/{unet.name} has changed (sha256 "
    assert name in refused(words, output, capsys)
    with unet.open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(last)
    assert main(["sample", *words]) == 0

    scheduler = model / "scheduler" / "scheduler_config.json"
    original = scheduler.read_text()
    scheduler.write_text(json.dumps(json.loads(original) | {"prediction_type": "epsilon"}))
    assert "model.name: scheduler/scheduler_config.json has changed" in refused(words, output, capsys)
    scheduler.write_text(original)

    (model / "vae").rename(tmp_path / "vae")
    (model / "vae").symlink_to(tmp_path / "vae")
    assert main(["sample", *words]) == 0  # the same content through a link
    config = tmp_path / "vae" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"scaling_factor": 0.2}))
    assert "model.name: vae/config.json has changed" in refused(words, output, capsys)


def test_a_worker_on_a_machine_with_other_files_is_refused(model, tmp_path):
    config = load("scenes", settings(model, tmp_path / "out", *TINY))
    run = pipeline.prepare(config)
    inputs.record(run)
    SampleWorker(config, run.hashes.sample)
    scheduler = model / "scheduler" / "scheduler_config.json"
    scheduler.write_text(json.dumps(json.loads(scheduler.read_text()) | {"prediction_type": "epsilon"}))
    with pytest.raises(ValueError, match=r"scheduler_config.json has changed \(sha256"):
        SampleWorker(config, run.hashes.sample)


def test_a_row_that_moves_between_the_files_of_a_split(tiny_pipeline, tmp_path, capsys):
    one, two = tmp_path / "train.csv", tmp_path / "test.csv"
    rows = [f"a red box {i},{i},name{i}\n" for i in range(4)]

    def write(first: list[str], second: list[str]) -> None:
        for path, part in ((one, first), (two, second)):
            path.write_text("prompt,seed,id\n" + "".join(part))

    write(rows[:2], rows[2:])
    output = tmp_path / "out"
    words = ["scenes", *settings(tiny_pipeline, output, *TINY, f"prompts.source={one}", f"prompts.test={two}",
                                 "prompts.count=0", "probe.selection=last")]  # fmt: skip
    assert main(["sample", *words]) == 0
    write(rows[:1], rows[1:])
    line = refused(words, output, capsys)
    assert "sample 1, now test.csv row 2.split: train -> test" in line
    write(rows[:2], [rows[3], rows[2]])
    assert "sample 2, now test.csv row 2" in refused(words, output, capsys)
    write(rows[:2], [row.replace("\n", "\r\n") for row in rows[2:]])
    assert f"prompts.test: {two} has changed" in refused(words, output, capsys)
    write(rows[:2], rows[2:])
    assert main(["sample", *words]) == 0


def test_a_run_of_an_earlier_version_is_resumed_and_still_compared_by_its_prompts(tiny_pipeline, tmp_path, capsys):
    source, output = tmp_path / "p.csv", tmp_path / "out"
    text = "prompt\n" + "".join(f"a red box {i}\n" for i in range(4))
    source.write_text(text)
    words = ["scenes", *settings(tiny_pipeline, output, *TINY, f"prompts.source={source}", "prompts.count=0")]
    assert main(["sample", *words]) == 0
    (output / inputs.FILE).unlink()
    source.write_text(text.replace("box 2", "sphere"))
    assert "sample 2, now p.csv row 4" in refused(words, output, capsys)
    source.write_text(text)
    assert main(["sample", *words]) == 0
    assert f"prompts.source: {source}" in (output / inputs.FILE).read_text()


class Toy:
    """A labeller whose labels are the content of its weights file."""

    revision = "toy"

    def __init__(self, weights: str) -> None:
        self.value = int(Path(weights).read_text())

    def __call__(self, images):
        import numpy as np

        return np.full(images.shape[:3], self.value, np.uint8)


def test_weights_of_a_labeller(tiny_pipeline, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(registry, "_REGISTRY", {**registry._REGISTRY, ("saliency", "toy"): lambda w, device: Toy(w)})
    weights, output = tmp_path / "toy.txt", tmp_path / "out"
    weights.write_text("1")
    more = ["labels.saliency=toy", f"labels.saliency_weights={weights}"]
    words = ["scenes", *settings(tiny_pipeline, output, *TINY, *more)]
    assert main(["sample", *words]) == 0
    weights.write_text("2")
    assert main(["label", *words]) == 0  # nothing was labelled with the earlier file
    assert storage.open(str(output)).read_labels("saliency").max() == 2
    weights.write_text("3")
    assert f"labels.saliency_weights: {weights} has changed" in refused(words, output, capsys, "label")
    other = tmp_path / "other.txt"
    shutil.copy(weights, other)
    assert main(["label", *words, f"labels.saliency_weights={other}"]) == 0  # another setting: labelled again
    assert storage.open(str(output)).read_labels("saliency").max() == 3


def test_a_package_that_labels_has_one_version(tiny_pipeline, tmp_path, monkeypatch):
    def installed(version: str) -> None:
        folder = tmp_path / version
        (folder / "rembg").mkdir(parents=True)
        (folder / "rembg" / "__init__.py").touch()
        (folder / f"rembg-{version}.dist-info").mkdir()
        (folder / f"rembg-{version}.dist-info" / "METADATA").write_text(f"Name: rembg\nVersion: {version}\n")
        monkeypatch.syspath_prepend(folder)

    words = settings(tiny_pipeline, tmp_path / "out", *TINY, "labels.saliency=rembg-u2net")
    config = load("scenes", [*words, "ray.address=auto"])  # a cluster's workers may have what the planner lacks
    run = pipeline.prepare(config)
    inputs.record(run)
    installed("2.0.60")
    inputs.verify(run.store, config, "label")  # the planner has no such package: nothing to compare with
    inputs.record(run)
    inputs.verify(run.store, config, "label")
    installed("2.0.61")
    with pytest.raises(ValueError, match=r"labels.saliency: package rembg has changed \(2.0.60 -> 2.0.61\)"):
        inputs.verify(run.store, config, "label")


def test_every_setting_that_names_a_file_is_covered(tmp_path):
    for name in ("w", "probes", "checker"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a").write_text(name)
    pairs = [f"labels.depth_weights={tmp_path / 'w'}", f"interventions.probes={tmp_path / 'probes'}",
             f"curation.safety_weights={tmp_path / 'checker'}", "curation.safety=true"]  # fmt: skip
    config = load("scenes", pairs)
    names = [name for stage in inputs.STAGES for name in inputs.files(config, stage)]
    for key, folder in (("labels.depth_weights", "w"), ("interventions.probes", "probes"),
                        ("curation.safety_weights", "checker")):  # fmt: skip
        assert f"{key}: {tmp_path / folder}/a" in names
    assert "model.name: unet/config.json" in names
    assert "labels.saliency: labeller.safetensors" in names


def test_an_output_without_a_complete_shard_is_begun_anew(tiny_pipeline, tmp_path, capsys):
    output = tmp_path / "out"
    first = load("scenes", settings(tiny_pipeline, output, *TINY, "prompts.seed=7", "sampling.shard=4"))
    pipeline.prepare(first)
    (output / "mine.txt").write_text("kept")
    words = ["scenes", *settings(tiny_pipeline, output, *TINY)]
    assert main(["sample", *words]) == 0
    assert (output / "mine.txt").read_text() == "kept"
    fresh = tmp_path / "fresh"
    assert main(["sample", "scenes", *settings(tiny_pipeline, fresh, *TINY)]) == 0
    for name in ("samples.parquet", "layout.json", "prompts.json"):
        assert (output / name).read_bytes() == (fresh / name).read_bytes()
    assert storage.open(str(output)).files.list("activations.zarr/") == storage.open(str(fresh)).files.list(
        "activations.zarr/"
    )
    capsys.readouterr()
    assert main(["sample", *words, "prompts.seed=8"]) == 2  # it has complete shards now
    assert "holds a run with other settings (prompts.seed: 0 -> 8)" in capsys.readouterr().err


def test_a_refused_model_does_not_block_its_output(tiny_pipeline, model, tmp_path, capsys):
    config = model / "unet" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"in_channels": 9}))
    output = tmp_path / "out"
    assert main(["sample", "scenes", *settings(model, output, *TINY)]) == 2
    assert not output.exists()
    assert main(["sample", "scenes", *settings(tiny_pipeline, output, *TINY)]) == 0
