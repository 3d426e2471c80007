"""Every analysis of a model whose latents are not square: grids of 24 x 16, 12 x 8, 6 x 4 and 3 x 2 tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pyarrow.compute as pc
import pytest

from storage import SiteShape
from support.report_store import CONFIG, Made, make_store
from sweeps.analysis import baselines, experiments, measures, seeds, summary
from sweeps.analysis.claims import UNTESTED, ClaimInputs, judge
from sweeps.analysis.converged import references
from sweeps.analysis.floors import depth_scale, named_floors
from sweeps.analysis.position import nested
from sweeps.analysis.scores import collect
from sweeps.analysis.tables import RunData, StoreReader, grid_of, load, main_sites
from sweeps.tracking.runs import plan

IMAGE = (768, 512)


class Reader(StoreReader):
    """Labels of a quarter of the image's size per side, and one linear probe for every site and step."""

    def labels(self, task: str, samples: Sequence[int]) -> np.ndarray | None:
        values = np.random.default_rng(0).random((len(samples), 192, 128))
        return (values > 0.7).astype(np.uint8) * 255 if task == "saliency" else values.astype(np.float32)

    def weights(
        self, variant: str, site: str, step: int, task: str, experiment: str = ""
    ) -> dict[str, np.ndarray] | None:
        return {"weight": np.random.default_rng(step).normal(size=(2 if task == "saliency" else 1, 3))}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunData:
    """A made-up run of square grids, with half again as many rows of tokens."""
    store = make_store(tmp_path_factory.mktemp("run"), Made(pictures=False, variants=("trained", "random")))
    square = load(store, CONFIG)
    sites = main_sites([SiteShape(s.name, s.tokens * 3 // 2, s.channels) for s in square.sites], IMAGE)
    probes = square.tables["probes"]
    tokens = pc.divide(pc.multiply(probes["tokens"], 3), 2)
    probes = probes.set_column(probes.column_names.index("tokens"), "tokens", tokens)
    tables = {**square.tables, "probes": probes}
    return replace(square, image=IMAGE, sites=sites, tables=tables, reader=Reader(store))


def test_sites_of_every_experiment_have_the_image_s_aspect(run: RunData) -> None:
    families = experiments.families(run)
    grids = {s.name: s.grid for scores in families.values() for s in scores["depth"].sites}
    assert grids["vae.mid"] == grids["conv.up.3.0"] == (24, 16)
    assert (grids["up.2.0"], grids["up.1.0"], grids["conv.mid.0"]) == ((12, 8), (6, 4), (3, 2))
    assert {s.name: s.grid for s in run.sites}["up.3.2"] == (24, 16)


def test_every_analysis_has_a_result(run: RunData) -> None:
    scores = collect(run)
    assert set(scores) == {"saliency", "depth"}
    controls = {"position": collect(run, control="position")}
    families, emergence = experiments.families(run), experiments.emergence(run, scores)
    inputs = ClaimInputs(scores, families, emergence, summary.interventions(run), controls)
    assert [claim.key for claim in judge(inputs) if claim.verdict == UNTESTED] == []
    contrasts = baselines.preregistered(scores, controls, families["vae"])
    assert {c.baseline for c in contrasts if np.isfinite(c.p)} == {"vae", "random", "position"}
    assert all(t.cosine is not None for t in experiments.transfers(run, scores))
    assert references(run)
    assert measures.precision(run) is not None
    assert nested(run) == []
    for task, found in scores.items():
        assert baselines.headline(found, {"position": controls["position"][task]}) is not None
        assert all(np.isfinite(floor).all() for floor in named_floors(run, found).values())
        assert np.isfinite(experiments.selectivity_map(run, found).gain).all()
        assert summary.not_above(found, "trained").shape == (16, 15)
        assert measures.last_step(run, found)
        assert seeds.permutations(run, found) == seeds.probes(run, found) == []
    assert set(named_floors(run, scores["saliency"])) == {"mean mask", "all foreground", "position alone"}
    assert depth_scale(run)[1] == pytest.approx(0.29, abs=0.01)
    assert len(plan(run, "site")) == 2 * 16


@pytest.mark.parametrize(
    ("grid", "image"),
    [
        ((96, 64), IMAGE),
        ((3, 2), IMAGE),
        ((64, 96), (512, 768)),
        ((8, 8), (128, 128)),
        ((8, 2), (480, 96)),  # the ideal 8.9 rows do not divide 16 tokens
        ((4, 2), (224, 96)),
        ((0, 0), IMAGE),
    ],
)
def test_the_grid_of_tokens_follows_the_image(grid: tuple[int, int], image: tuple[int, int]) -> None:
    assert grid_of(grid[0] * grid[1], image) == grid
