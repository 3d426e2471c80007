"""A probe fitted from a notebook is the probe that the stage fits, and it shows itself."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

import probing
import storage
from probing.probes.config import ProbeConfig


@pytest.mark.parametrize("task", ["saliency", "depth"])
def test_it_has_the_scores_that_the_run_stored(finished: Path, task: str) -> None:
    store = storage.open(str(finished))
    site = store.layout.sites[-1].name
    probe = probing.fit(store, site, 2, task)
    stored = store.scores().query("experiment == 'grid' and variant == 'trained' and step == 2 and task == @task")
    stored = stored[stored["site"] == site].iloc[0]
    compared = [name for name in probe.scores if name in stored and np.isfinite(stored[name])]
    assert len(compared) > 5
    assert {name: probe.scores[name] for name in compared} == pytest.approx(stored[compared].to_dict(), abs=1e-5)
    maps = probe.predict(probe.test)
    assert maps.shape == (len(probe.test), *probe.grid)
    labels = probe.labels(probe.test)
    if task == "depth":  # the maps are what was scored: the same error, pixel by pixel
        factor = labels.shape[1] // probe.grid[0]
        errors = np.kron(maps, np.ones((factor, factor))) - labels
        assert np.sqrt((errors**2).mean((1, 2))).mean() == pytest.approx(probe.scores["rmse"], abs=1e-4)
    else:
        assert maps.min() >= 0
        assert maps.max() <= 1
    page = probe._repr_html_()
    assert f"{task} probe at {site}, step 2" in page
    assert len(re.findall("<img alt=.(image|label|prediction) of sample", page)) == 9
    assert len(page) < 200_000


def test_wrong_inputs_are_one_line(finished: Path, tmp_path: Path) -> None:
    store = storage.open(str(finished))
    for words, match in (
        (("mid.9", 2, "depth"), "site='mid.9': this store has down.0.0"),
        (("mid.0", 99, "depth"), "step 99 is not recorded"),
        (("mid.0", 2, "colour"), "task='colour': choose from saliency, depth"),
    ):
        with pytest.raises(ValueError, match=match):
            probing.fit(store, *words)
    with pytest.raises(ValueError, match="control='surface': choose from none, shuffled"):
        probing.fit(store, "mid.0", 2, "depth", control="surface")
    with pytest.raises(ValueError, match=r"mid\.0, step 2: the weights are no longer finite"):
        probing.fit(store, "mid.0", 2, "depth", config=ProbeConfig(optimizer="sgd", lr=1e300))
    bare = storage.Store.create(str(tmp_path), store.layout, durable=False)
    with pytest.raises(ValueError, match="not curated yet"):
        probing.fit(bare, "mid.0", 2, "depth")
