"""Curation before capture: raw prompts are sampled once without recording, and only kept ones are recorded."""

from __future__ import annotations

import csv
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import storage
from cluster.process import pinned_threads
from probing.dataset import prompts
from support.tiny_runs import configured, settings, stored
from sweeps import pipeline
from sweeps.cli.main import main
from sweeps.config.hashing import chosen_by, hashes
from sweeps.config.load import load
from sweeps.config.schema import previews
from sweeps.curation import page
from sweeps.runtime.run import layout, reopen
from sweeps.stages import curate, preview

COUNT = 10


@pytest.fixture(scope="module")
def captions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("prompts") / "raw.csv"
    found = prompts.read(prompts.PromptConfig(count=COUNT)).prompts
    with path.open("w", newline="") as stream:
        rows = csv.writer(stream)
        rows.writerow(["prompts", "seeds"])
        rows.writerows((prompt.text, prompt.seed) for prompt in found)
    return path


@pytest.fixture(scope="module")
def previewed(tiny_pipeline: Path, captions: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished preview of all prompts, all kept."""
    output = tmp_path_factory.mktemp("all") / "run"
    result = pipeline.Result()
    pipeline.run_preview(configured(tiny_pipeline, output, *words(captions, 0)), result)
    assert result.lines[-1] == f"preview: {COUNT} of {COUNT} samples kept"
    return output


@pytest.fixture(scope="module")
def threshold(previewed: Path) -> float:
    """A least contrast that half of the tiny model's images reach."""
    images = storage.open(str(previewed / "preview")).read_images("trained")
    levels = np.sort([image.std() for image in images])
    return float(levels[4] + levels[5]) / 2


def words(captions: Path, contrast: float) -> list[str]:
    return [
        f"prompts.source={captions}", "prompts.count=0", "sampling.preview=true", f"curation.min_contrast={contrast}",
        "curation.train=2", "curation.val=1", "curation.test=0",
    ]  # fmt: skip


@pytest.fixture(scope="module")
def chosen(
    tiny_pipeline: Path, captions: Path, previewed: Path, threshold: float, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A stricter choice from the same images, recorded."""
    output = tmp_path_factory.mktemp("chosen") / "run"
    shutil.copytree(previewed, output)
    config = configured(tiny_pipeline, output, *words(captions, threshold))
    result = pipeline.execute(config, ("sample", "label", "curate"))
    assert result.failed == {}
    assert any("preview: 5 of 10 samples kept, 5 dropped (blank)" in line for line in result.lines)
    return output


def test_only_kept_samples_are_recorded_for_every_variant(chosen):
    store, preview_store = storage.open(str(chosen)), storage.open(str(chosen / "preview"))
    decided = preview_store.curation().to_pydict()
    raw, packed = preview_store.samples().to_pydict(), store.samples().to_pydict()
    kept = [i for i, keep in zip(decided["sample"], decided["keep"], strict=True) if keep]
    assert len(kept) == 5
    assert {why for why, keep in zip(decided["reason"], decided["keep"], strict=True) if not keep} == {"blank"}
    assert packed["prompt"] == [raw["prompt"][i] for i in kept]
    assert packed["seed"] == [raw["seed"][i] for i in kept]
    assert packed["shard"] == [0, 0, 0, 0, 1]
    for variant in ("trained", "random"):
        assert store.completed("sample", variant) == {0, 1}
        assert store.read_activations(variant, "mid.0", 15).shape[0] == 5


def test_the_preview_records_no_activation_and_no_other_variant(chosen):
    files = storage.open(str(chosen / "preview")).list()
    assert not [path for path in files if path.startswith(("activations.zarr", "latents.zarr"))]
    assert {path.split("/")[1] for path in files if path.startswith("images.zarr/trained/images/c")} == {"trained"}
    assert not [path for path in files if "/random/" in path]


def test_labels_belong_to_the_image_of_the_capture_pass(chosen):
    from sweeps.runtime.run import stored_config
    from sweeps.stages.label import LabelWorker

    store = storage.open(str(chosen))
    worker = LabelWorker(stored_config(str(chosen)), "")
    first = list(range(4))
    for task in ("saliency", "depth"):
        with pinned_threads(1):  # as the stage does: their number changes the last bits
            expected = worker.labellers[task](store.read_images("trained", first))
        np.testing.assert_array_equal(store.read_labels(task, first), expected)


def test_the_page_of_a_preview_shows_depth_which_its_rules_ignore(previewed, tiny_pipeline, captions, monkeypatch):
    config = preview.settings(configured(tiny_pipeline, previewed, *words(captions, 0)))
    run = reopen(config)
    depth = run.store.read_labels("depth", [0, 1])
    assert depth.dtype == np.float16
    shown = list(page.shown_samples(run, curate.measures(run)))
    assert len(shown) == COUNT
    np.testing.assert_array_equal(shown[1].depth, depth[1])
    seen, measure = [], curate.measure
    monkeypatch.setattr(curate, "measure", lambda *given: seen.append(given[2]) or measure(*given))
    assert len(curate.measures(run)) == COUNT
    assert seen == [None] * 3


def test_a_preview_created_without_depth_stays_without(tiny_pipeline, captions, tmp_path, monkeypatch):
    config = configured(tiny_pipeline, tmp_path / "run", *words(captions, 0), "prompts.count=4")
    with monkeypatch.context() as early:
        early.setattr("sweeps.runtime.run.layout", lambda *given: replace(layout(*given), tasks={"saliency": "uint8"}))
        pipeline.run_preview(config, pipeline.Result())
    again = pipeline.Result()
    pipeline.run_preview(config, again)
    assert again.failed == {}
    store = storage.open(str(tmp_path / "run" / "preview"))
    assert set(store.layout.tasks) == {"saliency"}
    own = preview.settings(config)
    run = reopen(own)
    assert all(s.depth is None for s in page.shown_samples(run, curate.measures(run)))


@pytest.mark.slow
def test_kept_samples_agree_with_a_run_of_those_prompts_alone(chosen, tiny_pipeline, tmp_path):
    """Byte for byte: dropped samples do not change what is recorded."""
    table = storage.open(str(chosen)).samples().to_pydict()
    path = tmp_path / "kept.csv"
    with path.open("w", newline="") as stream:
        rows = csv.writer(stream)
        rows.writerow(["prompts", "seeds"])
        rows.writerows(zip(table["prompt"], table["seed"], strict=True))
    own = [f"prompts.source={path}", "prompts.count=0", "sampling.variants=[trained]"]
    pipeline.execute(configured(tiny_pipeline, tmp_path / "alone", *own), ("sample",))
    names = ("activations.zarr/trained", "images.zarr/trained", "latents.zarr/trained", "samples.parquet")
    assert stored(chosen, names) == stored(tmp_path / "alone", names)


def test_it_resumes_without_doing_anything_again(chosen, tiny_pipeline, captions, threshold, capsys):
    before = {p: p.stat().st_mtime_ns for p in chosen.rglob("*") if p.is_file()}
    assert main(["sample", "scenes", *settings(tiny_pipeline, chosen, *words(captions, threshold))]) == 0
    assert "nothing to do" in capsys.readouterr().out
    assert {p: p.stat().st_mtime_ns for p in chosen.rglob("*") if p.is_file()} == before


def test_another_choice_is_refused_with_what_changed(chosen, tiny_pipeline, captions, capsys):
    before = stored(chosen)
    assert main(["sample", "scenes", *settings(tiny_pipeline, chosen, *words(captions, 1.5))]) == 2
    assert "(curation.min_contrast: " in capsys.readouterr().err
    assert stored(chosen) == before


def test_verify_and_status_cover_both_stores(chosen, capsys):
    assert main(["verify", str(chosen), "--recompute", "0"]) == 0
    assert main(["status", str(chosen)]) == 0
    out = capsys.readouterr().out
    assert "preview sampling trained" in out
    assert "\nsampling random" in out
    chunk = chosen / "preview" / "images.zarr" / "trained" / "images" / "c" / "0" / "0" / "0" / "0"
    whole = chunk.read_bytes()
    try:
        chunk.write_bytes(whole[:-1])
        assert main(["verify", str(chosen), "--recompute", "0"]) == 1
        assert "size: images.zarr/trained" in capsys.readouterr().out
    finally:
        chunk.write_bytes(whole)


def test_a_plan_prices_both_passes(tiny_pipeline, captions, tmp_path, capsys):
    output = tmp_path / "out"
    assert main(["plan", "scenes", *settings(tiny_pipeline, output, *words(captions, 0))]) == 0
    out = capsys.readouterr().out
    assert f"{COUNT} images of the trained model, nothing recorded: {COUNT * 15} network calls" in out
    assert "if only 3 samples are kept" in out
    assert not output.exists()


def test_nothing_kept_is_one_clear_line(tiny_pipeline, captions, previewed, tmp_path, capsys):
    shutil.copytree(previewed, tmp_path / "none")
    words_ = ["sample", "scenes", *settings(tiny_pipeline, tmp_path / "none", *words(captions, 255))]
    assert main(words_) == 2
    assert "no previewed sample is kept (10 blank)" in capsys.readouterr().err


def test_status_shows_a_preview_that_stopped(
    tiny_pipeline, captions, previewed, threshold, tmp_path, monkeypatch, capsys
):
    from sweeps.stages import label

    output = tmp_path / "stopped"
    shutil.copytree(previewed, output)
    shutil.rmtree(output / "preview" / "shards" / "label")
    more = ["sampling.retries=0", "sampling.variants=[trained]"]
    words_ = settings(tiny_pipeline, output, *words(captions, threshold), *more)

    def broken(self, task):
        raise RuntimeError("no labels today")

    whole = label.LabelWorker.__call__
    monkeypatch.setattr(label.LabelWorker, "__call__", broken)
    assert main(["sample", "scenes", *words_]) == 1
    assert not (output / "layout.json").exists()
    assert main(["status", str(output)]) == 1
    out = capsys.readouterr()
    assert "no labels today" in out.err
    assert "once the preview is curated" in out.out
    monkeypatch.setattr(label.LabelWorker, "__call__", whole)
    assert main(["sample", "scenes", *words_]) == 0
    shown = capsys.readouterr().err
    assert "stage 1/2 preview labelling: " in shown  # what is left of both passes is numbered together
    assert "stage 2/2 sampling: " in shown
    assert storage.open(str(output)).layout.samples == 5


def test_curated_prompts_need_no_preview():
    assert not previews(load("scenes", ["sampling.preview=true"]))
    assert not previews(load("paper", []))
    raw = load("paper", ["prompts.test=", "prompts.source=raw.csv"])
    assert previews(raw)
    assert chosen_by(raw)["curation"]["min_foreground"] == pytest.approx(1e-7)


def test_the_choice_is_part_of_the_sampling_hash_only_where_there_is_one():
    def sample_hash(*more: str) -> str:
        return hashes(load("paper", ["prompts.test=", *more]), "revision").sample

    assert sample_hash("labels.threshold=9") != sample_hash()
    assert sample_hash("curation.train=9") == sample_hash()
    plain = sample_hash("sampling.preview=false")
    assert sample_hash("sampling.preview=false", "labels.threshold=9") == plain


def test_the_fewest_samples_are_those_of_the_split():
    config = load("scenes", ["curation.train=4", "curation.val=2", "curation.test=0.5"])
    assert preview.fewest(config, 100) == 6
    assert preview.fewest(config, 5) == 5
