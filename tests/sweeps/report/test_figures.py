"""Figures: SVG with theme colours and descriptions, reproducible, and the numbers behind it."""

from __future__ import annotations

import base64
import csv
import io
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from support.report_store import CONFIG, Made, make_store
from sweeps.analysis.scores import Scores, collect
from sweeps.analysis.summary import interventions
from sweeps.analysis.tables import RunData, load
from sweeps.report.figures.base import INKS, Panel, ink, spread
from sweeps.report.figures.interventions import edit_panels
from sweeps.report.figures.probes import block_curves, dumbbells, heatmap, site_curves

THEMED = {light for light, _ in INKS.values()}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunData:
    store = make_store(tmp_path_factory.mktemp("figures"), Made(pictures=False))
    return load(store, CONFIG)


@pytest.fixture(scope="module")
def scores(run: RunData) -> dict[str, Scores]:
    return collect(run)


@pytest.fixture(scope="module")
def panels(run: RunData, scores: dict[str, Scores]) -> list[Panel]:
    saliency = scores["saliency"]
    return [
        block_curves(saliency),
        *site_curves(saliency),
        heatmap(saliency, "trained"),
        heatmap(scores["depth"], "random"),
        dumbbells(scores["depth"]),
        *edit_panels(interventions(run)),
    ]


def rows(panel: Panel) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(panel.csv())))


def test_ids_of_all_inline_figures_differ(panels: list[Panel]) -> None:
    ids = [i for p in panels for i in re.findall(r'\bid="([^"]+)"', p.inline())]
    assert len(ids) > 100
    assert len(ids) == len(set(ids))


def test_references_inside_a_figure_resolve(panels: list[Panel]) -> None:
    for panel in panels:
        inline = panel.inline()
        ids = set(re.findall(r'\bid="([^"]+)"', inline))
        used = re.findall(r'(?:url\(#|xlink:href="#)([^)"]+)', inline)
        assert set(used) <= ids, panel.name


def test_inline_figures_use_theme_colours_and_have_descriptions(panels: list[Panel]) -> None:
    for panel in panels:
        inline = panel.inline()
        assert not [c for c in THEMED if c in inline], panel.name
        assert f'aria-labelledby="{panel.name}-t {panel.name}-d"' in inline
        assert "var(--ink)" in inline
        assert len(panel.text) > 30


def test_files_have_fixed_colours_and_text_elements(panels: list[Panel]) -> None:
    svg = panels[0].svg
    assert "var(" not in svg
    assert ">denoising step</text>" in svg
    assert "<dc:date" not in svg


def test_equal_numbers_give_equal_bytes(scores: dict[str, Scores]) -> None:
    first, second = (block_curves(scores["depth"]).svg for _ in range(2))
    assert first == second


def test_curve_numbers_are_the_block_means(scores: dict[str, Scores]) -> None:
    saliency = scores["saliency"]
    found = rows(block_curves(saliency))
    line = [r for r in found if (r["line"], r["variant"]) == ("up.2", "trained")]
    expected = saliency.values[0, saliency.site_indices("up.2")].mean((0, 2))
    np.testing.assert_allclose([float(r["mean"]) for r in line], expected, rtol=1e-5)
    assert [int(r["step"]) for r in line] == list(saliency.steps)
    assert all(float(r["low"]) <= float(r["mean"]) <= float(r["high"]) for r in line)


def test_heatmap_numbers_are_the_site_means(scores: dict[str, Scores]) -> None:
    depth = scores["depth"]
    found = [float(r["mean"]) for r in rows(heatmap(depth, "random"))]
    np.testing.assert_allclose(found, depth.values[1].mean(-1).ravel(), rtol=1e-5)


def cells(panel: Panel) -> np.ndarray:
    """uint8 (sites, steps, 4): the colours of a heatmap's cells."""
    data = re.search(r'xlink:href="data:image/png;base64,([^"]+)" id="cells"', panel.svg)
    assert data
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(data[1]))).convert("RGBA"))


def test_missing_entries_of_a_heatmap_are_empty(scores: dict[str, Scores]) -> None:
    values = scores["depth"].values.copy()
    values[0, 3, 4:] = np.nan
    panel = heatmap(replace(scores["depth"], values=values), "trained")
    whole = heatmap(scores["depth"], "trained")
    assert [(cells(p)[..., 3] == 0).sum() for p in (whole, panel)] == [0, 11]
    assert rows(panel)[3 * 15 + 4]["mean"] == "nan"


def test_edit_panels_hold_every_edit_and_control(run: RunData) -> None:
    found = {p.name: p for p in edit_panels(interventions(run))}
    counts = rows(found["edits-saliency-weights-before-after"])
    assert sum(int(r["after"]) for r in counts) == 50
    controls = [r["control"] for r in rows(found["edits-depth-weights-controls"])]
    assert controls == ["edit", "none", "random_direction", "random_probe"]


def test_png_is_an_image_on_the_light_page(panels: list[Panel]) -> None:
    pixels = panels[0].png(dpi=50)
    assert pixels.shape == (155, 205, 3)
    assert tuple(pixels[0, 0]) == tuple(bytes.fromhex(INKS["paper"][0][1:]))


@given(st.lists(st.floats(-1, 2), max_size=14), st.floats(0.01, 0.4))
def test_spread_keeps_order_distance_and_range(positions: list[float], gap: float) -> None:
    moved = spread(positions, gap, 0.0, 1.0)
    ordered = moved[np.argsort(positions, kind="stable")]
    kept = min(gap, 1 / max(len(positions) - 1, 1))
    assert (np.diff(ordered) >= kept - 1e-9).all()
    assert ((moved > -1e-9) & (moved < 1 + 1e-9)).all()


def test_spread_leaves_distant_labels_alone() -> None:
    np.testing.assert_array_equal(spread([0.0, 5.0, 2.0], 0.5, 0, 9), [0.0, 5.0, 2.0])


def test_svg_files_are_valid_xml(panels: list[Panel], tmp_path: Path) -> None:
    import xml.etree.ElementTree as tree

    for panel in panels:
        path = tmp_path / f"{panel.name}.svg"
        path.write_text(panel.svg)
        assert tree.parse(path).getroot().tag.endswith("svg")
    assert ink("ink") in panels[0].svg
