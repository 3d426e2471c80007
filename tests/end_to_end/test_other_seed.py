"""Another image of the same prompt: sampled from derived noise, probed for the first image's labels, a baseline."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import storage
from probing.diffusion.capture import capture
from probing.diffusion.config import PAPER_STEPS
from probing.diffusion.model import load as load_model
from probing.diffusion.sites import choose
from probing.diffusion.variants import OTHER_SEED, noise_seed
from support.report_store import CONFIG, Made, make_store
from support.tiny_runs import configured
from sweeps import pipeline
from sweeps.analysis import baselines, tables
from sweeps.analysis.scores import collect
from sweeps.config.load import load, presets
from sweeps.report import build, context

FEW = ("mid.0", "up.2.1", "up.3.0")


def test_the_derived_seed_is_another_and_fixed() -> None:
    assert [noise_seed(name, 5) for name in ("trained", "random", "random_forced@7")] == [5, 5, 5]
    derived = [noise_seed(OTHER_SEED, seed) for seed in range(2000)]
    assert len(set(derived)) == 2000
    assert not set(derived) & set(range(2000))
    assert derived[5] == 3441768021


def test_it_is_a_variant_and_no_probe_control() -> None:
    assert OTHER_SEED in load("scenes", [f"sampling.variants=[trained,{OTHER_SEED}]"]).sampling.variants
    with pytest.raises(ValueError, match=f"sweep.controls='{OTHER_SEED}'.*sampling.variants"):
        load("scenes", [f"sweep.controls=[none,{OTHER_SEED}]"])
    with pytest.raises(ValueError, match="take a seed"):
        load("scenes", [f"sampling.variants=[trained,{OTHER_SEED},{OTHER_SEED}@3]"])
    assert [name for name in presets() if OTHER_SEED in load(name, []).sampling.variants] == ["scenes-full"]


def test_the_other_image_is_probed_for_the_first_ones_labels(tiny_pipeline: Path, tmp_path: Path) -> None:
    more = (f"sampling.variants=[trained,{OTHER_SEED}]", "interventions.tasks=[]", "sampling.sites=[up.2.1]")
    more += ("prompts.count=8", "curation.train=3", "curation.val=2", "curation.test=3")
    run_config = configured(tiny_pipeline, tmp_path / "run", *more)
    assert pipeline.execute(run_config).failed == {}
    store = storage.open(run_config.output)
    model, table = load_model(run_config.model), store.samples().to_pydict()
    sites, kept = choose(model.sites(), run_config.sampling.sites), {}
    capture(
        model, table["prompt"][:4], [noise_seed(OTHER_SEED, s) for s in table["seed"][:4]], sites,
        lambda site, step, values: kept.update({step: values}), None,
        steps=PAPER_STEPS, guidance=run_config.sampling.guidance,
    )  # fmt: skip
    other, own = (store.read_activations(name, "up.2.1", PAPER_STEPS, [0, 1, 2, 3]) for name in (OTHER_SEED, "trained"))
    np.testing.assert_allclose(other.astype(np.float32), kept[PAPER_STEPS].astype(np.float32), rtol=1e-2, atol=1e-3)
    assert not np.allclose(other.astype(np.float32), own.astype(np.float32), rtol=1e-2, atol=1e-3)
    rows = [
        row for row in store.table("probes").to_pylist() if row["step"] == PAPER_STEPS and row["task"] == "saliency"
    ]
    assert {row["variant"]: row["status"] for row in rows} == {"trained": "done", OTHER_SEED: "done"}
    floors = {row["variant"]: (row["floor_dice"], row["oracle_dice"]) for row in rows}
    assert floors["trained"] == floors[OTHER_SEED]  # both are of the trained images' labels


def test_it_is_listed_among_the_baselines(tmp_path: Path) -> None:
    made = Made(test=8, sites=FEW, pictures=False, extras=False, variants=("trained", "random", OTHER_SEED))
    run = tables.load(make_store(tmp_path, made), CONFIG)
    scores = collect(run)
    assert [baseline.name for baseline in baselines.baselines(scores["depth"], {})] == ["random", OTHER_SEED, "floor"]
    better = scores["depth"].val.copy()
    better[2] = 0.0
    easy = np.full(len(scores["depth"].sites), 9.0)
    lead = baselines.headline(replace(scores["depth"], val=better, floor=easy), {})
    assert lead is not None
    assert lead.baseline.name == OTHER_SEED
    page = build.draw_context(context.Context(run, scores)).html
    assert "Other image, same prompt" in page
    assert "what the text alone provides" in page
