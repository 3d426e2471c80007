"""The report: right numbers, one accessible file, sections that follow the data."""

from __future__ import annotations

import functools
import http.server
import io
import re
import shutil
import subprocess
import threading
from collections.abc import Iterator
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import storage
from probing.statistics import Interval
from support import report_store
from support.report_store import CONFIG, Made, make_store
from sweeps.analysis import summary, tables
from sweeps.analysis.baselines import Baseline, Headline
from sweeps.analysis.converged import references
from sweeps.analysis.scores import collect, cube
from sweeps.analysis.tables import apply_probe, current
from sweeps.analysis.words import number
from sweeps.cli import compare
from sweeps.report import build
from sweeps.report.context import build_context
from sweeps.report.page import Paragraph, Section, render
from sweeps.report.sections.results import gap_sentence
from sweeps.report.tables import Table, interval

EXTRA = (
    "controls", "interventions", "examples", "images", "emergence", "vae", "conv", "smoothness", "transfer",
)  # fmt: skip
FEW = ("mid.0", "up.2.1", "up.3.0")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")


class Page(HTMLParser):
    """Tags with their attributes, and the text of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, Any]]] = []
        self.words: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    def all(self, tag: str) -> list[dict[str, Any]]:
        return [a for t, a in self.tags if t == tag]

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> storage.Store:
    return make_store(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def html(store: storage.Store) -> str:
    return Path(build.build(store, CONFIG)).read_text()


@pytest.fixture(scope="module")
def page(html: str) -> Page:
    return Page(html)


def sections(page: Page) -> list[str]:
    return [a["id"] for a in page.all("section")]


# -- the page


def test_page_needs_no_other_files(html: str, page: Page) -> None:
    assert len(html) < 15e6
    assert all(a["src"].startswith("data:image/") for a in page.all("img"))
    assert not [a for a in page.all("script") if "src" in a]
    assert not re.search(r"\b(fetch|import|importScripts|XMLHttpRequest|WebSocket)\b *\(", html)
    assert not page.all("iframe")
    assert [a["href"] for a in page.all("link")] == ["data:,"]
    outside = [a["href"] for a in page.all("a") if not a["href"].startswith(("#", "data:"))]
    assert outside == ["https://arxiv.org/abs/2306.05720"]
    assert "url(http" not in html


def test_page_is_accessible(page: Page) -> None:
    assert page.all("html") == [{"lang": "en"}]
    assert all(a["alt"].strip() for a in page.all("img"))
    assert all(a["scope"] in ("row", "col", "colgroup") for a in page.all("th"))
    assert len(page.all("caption")) == len(page.all("table")) > 8
    assert all(a.get("role") == "img" and a["aria-labelledby"] for a in page.all("svg") if "aria-hidden" not in a)
    regions = [a for a in page.all("div") if a.get("class") == "scroll"]
    assert all(a["tabindex"] == "0" and a["aria-label"] for a in regions)


def test_ids_are_unique_and_links_inside_the_page_resolve(page: Page) -> None:
    ids = [a["id"] for _, a in page.tags if "id" in a]
    assert len(ids) == len(set(ids))
    anchors = {a["href"][1:] for a in page.all("a") if a["href"].startswith("#")}
    assert anchors <= set(ids)
    labels = {i for _, a in page.tags for i in a.get("aria-labelledby", "").split()}
    assert labels <= set(ids)


def test_all_parts_are_there_in_order(page: Page) -> None:
    assert sections(page) == [
        "findings", "explorer", "claims", "steps", "heatmaps", "interventions", "appendix",
        "images", "examples", "sites", "controls", "converged", "truth", "emergence", "vae", "conv", "smoothness",
        "selectivity", "transfer", "paper", "network", "costs", "provenance",
    ]  # fmt: skip
    contents = [a["href"][1:] for a in page.all("a") if a["href"][1:] in sections(page)][:7]
    assert contents == sections(page)[:7]
    assert len(page.all("details")) > len(sections(page)) - 7


def test_figures_are_also_files(store: storage.Store, page: Page) -> None:
    found = store.list("report/figures/")
    assert {p.rpartition(".")[2] for p in found} == {"svg", "csv"}
    assert "report/figures/heatmap-depth-random.csv" in found
    assert len(found) == 2 * len([a for a in page.all("svg") if "aria-hidden" not in a])


def test_the_same_tables_give_the_same_bytes(store: storage.Store, html: str) -> None:
    before = {p: store.get(p) for p in store.list("report/")}
    build.build(store, CONFIG)
    assert {p: store.get(p) for p in store.list("report/")} == before


def test_figures_of_earlier_reports_are_removed(tmp_path: Path) -> None:
    store = make_store(tmp_path, Made(test=3, sites=FEW, extras=False, pictures=False))
    store.put("report/figures/heatmap-depth-reinit.svg", b"old")
    build.build(store, CONFIG)
    found = store.list("report/figures/")
    assert "report/figures/heatmap-depth-reinit.svg" not in found
    assert "report/figures/heatmap-depth-random.svg" in found


def test_prompts_are_text_not_markup(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = report_store.scene
    monkeypatch.setattr(report_store, "scene", lambda *args: (*plain(*args)[:3], "<script>alert('&')</script>"))
    html = Path(build.build(make_store(tmp_path, Made(test=3, sites=FEW, extras=False)), CONFIG)).read_text()
    assert "<script>alert" not in html
    assert "&lt;script&gt;" in html
    assert r"\u003cscript\u003e" in html  # in the explorer's data


# -- what is shown follows the data


def test_parts_without_data_are_left_out(tmp_path: Path) -> None:
    made = Made(test=4, sites=FEW, variants=("trained",), extras=False, pictures=False, images=False)
    page = Page(Path(build.build(make_store(tmp_path, made), CONFIG)).read_text())
    assert not set(EXTRA) & set(sections(page))
    assert {"findings", "steps", "heatmaps", "sites", "paper"} <= set(sections(page))
    assert "the randomised network," not in page.text.partition("The paper makes five claims")[0]


def test_a_run_of_few_sites_and_steps_is_reported(tmp_path: Path) -> None:
    made = Made(test=3, sites=("down.0.0", "mid.0"), steps=(2, 7), extras=False, pictures=False)
    page = Page(Path(build.build(make_store(tmp_path, made), CONFIG)).read_text())
    assert "The salient object is decoded best at down.0.0" in page.text
    head = page.text.partition("Where can they be read?")[2].partition("Which of the paper’s claims")[0]
    assert "decoded best" in head
    assert "decoder" not in head
    assert not re.search(r"\bnan\b", page.text)


def test_a_run_without_probes_has_a_page(tmp_path: Path) -> None:
    layout = storage.Layout(samples=2, shard=2, variants=("trained",), sites=(), image=(8, 8))
    empty = storage.Store.create(str(tmp_path), layout, durable=False)
    page = Page(Path(build.build(empty, {})).read_text())
    assert "No probe has finished yet" in page.text
    assert sections(page) == ["findings", "appendix", "costs", "provenance"]


def test_predictions_survive_removal_of_the_activations(tmp_path: Path) -> None:
    store = make_store(tmp_path, Made(test=4, sites=FEW, extras=False))
    before = Path(build.build(store, CONFIG)).read_text()
    store.drop_activations()
    again = Path(build.build(storage.open(str(tmp_path)), CONFIG)).read_text()
    assert "Seen through the probes" in before
    assert again == before


def test_failed_probes_are_listed_and_not_averaged(tmp_path: Path) -> None:
    store = make_store(tmp_path, Made(test=4, sites=FEW, extras=False, pictures=False))
    good = tables.load(store, CONFIG).tables["probes"]
    bad = good.slice(0, 1).to_pylist()[0]
    bad |= {"status": "failed", "error": "activations hold NaN", "attempt": 2, "dice": None}
    store.append("probes", [bad])
    page = Page(Path(build.build(store, CONFIG)).read_text())
    assert "activations hold NaN" in page.text
    assert f"Probes finished {good.num_rows - 1} Probes failed 1" in page.text


# -- numbers


def test_headline_states_the_best_site_with_test_score_oracle_and_floor(store: storage.Store, page: Page) -> None:
    rows = store.table("images").to_pylist()
    last = [r for r in rows if r["step"] == 15 and r["control"] == "none"]
    dice = [r["dice"] for r in last if (r["variant"], r["site"]) == ("trained", "up.3.0")]
    score = np.mean([d for d in dice if d is not None])
    text = page.text.partition("What the model generates")[0]
    assert f"The salient object is decoded best at up.3.0 : Dice {score:.2f} (" in text
    assert "mean mask or all foreground, scores 0.34; the best possible map on the site’s 16 × 16 grid" in text


def test_average_precision_is_shown_beside_dice(store: storage.Store, page: Page) -> None:
    rows = store.table("images").to_pylist()
    mine = [r for r in rows if (r["experiment"], r["variant"], r["control"]) == ("grid", "trained", "none")]
    found = [r["ap"] for r in mine if (r["site"], r["step"], r["task"]) == ("up.3.0", 15, "saliency")]
    score = f"{np.mean(found):.2f}"
    assert f"Average precision, which needs no threshold, is {score} (" in page.text
    sites = page.text[page.text.index("Where the information is, and when", 3000) :]
    assert "Site Trained Trained, average precision Randomised" in sites
    assert re.search(rf"up\.3\.0 \d\.\d\d \(\S+\) {score} \(", sites)


def test_other_measures_are_shown_for_every_site(store: storage.Store, page: Page) -> None:
    text = page.text[page.text.index("Other measures at the last step") :]
    assert "Site Average precision Dice Dice, threshold of train Cross-entropy" in text
    assert "Site RMSE Spearman" in text
    probes = store.table("probes").to_pylist()
    row = next(
        r for r in probes
        if (r["experiment"], r["variant"], r["control"], r["site"], r["step"], r["task"])
        == ("grid", "trained", "none", "up.2.1", 15, "saliency")
    )  # fmt: skip
    expected = " ".join(f"{row[c]:.2f}" for c in ("ap", "dice", "dice_threshold", "crossentropy"))
    assert f"up.2.1 {expected}" in text


def test_crossentropy_of_shuffled_labels_is_shown_beside_their_dice(page: Page) -> None:
    text = page.text[page.text.index("Controls and selectivity", 3000) :]
    dice, loss = re.search(r"permuted over its patches (\d\.\d\d) \(\S+\) (\d\.\d\d)", text).groups()
    assert float(loss) == pytest.approx(0.7 - float(dice) / 2, abs=0.011)


def test_best_site_is_chosen_on_validation_and_scored_on_test(tmp_path: Path) -> None:
    store = make_store(tmp_path, Made(test=4, sites=FEW, extras=False, pictures=False))
    row = next(
        r
        for r in store.table("probes").to_pylist()
        if (r["variant"], r["site"], r["step"], r["task"]) == ("trained", "mid.0", 15, "saliency")
    )
    store.append("probes", [{**row, "val_dice": 0.99, "attempt": 2}])
    scores = collect(tables.load(store, CONFIG))["saliency"]
    best = summary.best_site(scores)
    assert best is not None
    assert scores.sites[best].name == "mid.0"
    assert summary.final(scores, "trained", "mid.0").estimate == pytest.approx(row["dice"])


@pytest.mark.parametrize(("task", "sign"), [("saliency", 1), ("depth", -1)])
def test_a_gap_is_positive_where_the_trained_network_is_better(store: storage.Store, task: str, sign: int) -> None:
    scores = collect(tables.load(store, CONFIG))[task]
    gap = summary.gap(scores, "decoder", "random")
    trained, other = (summary.final(scores, v, "decoder").estimate for v in ("trained", "random"))
    assert gap.estimate == pytest.approx(sign * (trained - other))
    assert 0 < gap.low < gap.estimate < gap.high


def test_gap_sentence_distinguishes_better_worse_and_unclear(store: storage.Store) -> None:
    scores = collect(tables.load(store, CONFIG))
    gains = {"saliency": Interval(0.2, 0.1, 0.3), "depth": Interval(-0.06, -0.11, -0.01)}
    found = {
        task: Headline(Baseline("random", scores[task], "random"), gain, 0.9, 0.9, ()) for task, gain in gains.items()
    }
    context = SimpleNamespace(scores=scores, headlines=found, precision_gain=None)
    text = re.sub("<[^>]+>", "", gap_sentence(context))
    assert re.search("better than its best baseline[^;]* by 0.20 .0.10–0.30. in Dice", text)
    assert re.search("worse than its best baseline[^;]* by 0.06 .0.01–0.11. in RMSE", text)
    context.headlines = {"depth": replace(found["depth"], gain=Interval(0.1, -0.1, 0.3))}
    text = re.sub("<[^>]+>", "", gap_sentence(context))
    assert re.search("not shown to be better than its best baseline[^;]* 0.10 .−0.10 to 0.30.", text)
    context.headlines = {"saliency": replace(found["saliency"], gain=Interval(-0.2, -0.3, -0.1))}
    context.precision_gain = Interval(-0.05, -0.08, -0.02)
    text = re.sub("<[^>]+>", "", gap_sentence(context))
    assert re.search("worse than .* by 0.20 .0.10–0.30. in Dice and 0.05 .0.02–0.08. in average precision", text)


def test_emergence_is_the_first_step_with_95_percent_of_the_rise(store: storage.Store) -> None:
    scores = collect(tables.load(store, CONFIG))["depth"]
    found = summary.emergence(scores, "trained", "decoder").step
    curve, floor = scores.means[0, scores.site_indices("decoder")].mean(0), 0.78
    rise = (curve - floor) / (curve[-1] - floor)
    assert found.estimate == scores.steps[int(np.argmax(rise >= 0.95))]
    assert found.low <= found.estimate <= found.high


def test_runs_are_compared_by_the_log_snr_of_their_rise(store: storage.Store) -> None:
    data = replace(tables.load(store, CONFIG), log_snrs=tuple(-9.0 + step for step in range(1, 16)))
    step = int(summary.emergence(collect(data)["depth"], "trained", "decoder").step.estimate)
    found = compare.rises(data, collect(data), "decoder")["trained rmse"]
    assert found == compare.Arrival(step, step - 9.0)
    pair = compare.Comparison(("a", "b"), {}, {"trained rmse": (found, None)}, [], [])
    assert f"{step} ({step - 9:+.2f})     no clear rise" in "\n".join(compare.lines(pair))
    unknown = replace(data, log_snrs=())
    assert compare.rises(unknown, collect(unknown), "decoder")["trained rmse"].log_snr is None


def test_emergence_is_also_shown_as_a_noise_level(store: storage.Store, page: Page) -> None:
    context = build_context(tables.load(store, CONFIG), store)
    assert list(context.sigmas) == list(range(1, 16))
    levels = np.array(list(context.sigmas.values()))
    assert (np.diff(levels) < 0).all()
    found = context.sigma(Interval(3.0, 2.0, 4.0))
    assert (found.estimate, found.low, found.high) == (levels[2], levels[3], levels[1])
    step = summary.emergence(context.scores["depth"], "trained", "decoder").step
    expected = f"Decoder mean .*?{step.estimate:.0f} \\(\\d+–\\d+\\) {context.sigma(step).estimate:.2f} "
    assert re.search(expected, page.text[page.text.index("First step with 95 %") :])
    assert "Step Sigma Score at step 1" in page.text


def test_interventions_show_edit_controls_and_pictures(store: storage.Store, page: Page) -> None:
    rows = store.table("interventions").to_pylist()
    mine = [r for r in rows if (r["task"], r["control"]) == ("saliency", "edit")]
    before, after = (np.median([r[f"score_{w}"] for r in mine]) for w in ("before", "after"))
    text = page.text[page.text.index("Does the model use it?") :]
    found = re.search(r"edit 50 (\d\.\d\d) \(.{9}\) (\d\.\d\d) \(", text)
    assert found
    assert [float(x) for x in found.groups()] == pytest.approx([before, after], abs=0.0051)
    assert "random direction 50" in text
    assert "the opposite move’s label" in text
    alts = [a["alt"] for a in page.all("img")]
    assert alts.count("Image after: probe weights") == 2
    assert alts.count("Depth: requested") == 1


def test_edits_keep_their_controls_in_order(store: storage.Store) -> None:
    found = summary.interventions(tables.load(store, CONFIG))
    assert [e.effect.control for e in found[:4]] == [
        "edit", "none", "random_direction", "random_probe",
    ]  # fmt: skip
    assert all(e.main for e in found)
    assert [e.after.size for e in found] == [50] * 8


def test_a_converged_reference_is_compared_image_by_image(store: storage.Store, page: Page) -> None:
    pairs = references(tables.load(store, CONFIG))
    assert [(p.measure.score, p.site, p.step) for p in pairs] == [(s, "up.2.1", 15) for s in ("dice", "ap", "rmse")]
    rmse = pairs[-1]
    assert rmse.trained - rmse.reference == pytest.approx(rmse.gain.estimate)
    assert rmse.gain.low > 0.1
    assert "converged" in sections(page)


def test_selectivity_is_the_gain_over_the_best_baseline(page: Page) -> None:
    text = page.text[page.text.index("Controls and selectivity") :]
    numbers = [float(x) for x in re.findall(r"(\d\.\d\d)", text.partition("Depth, RMSE")[0])]
    task, position = numbers[0], float(re.search(r"no activations (\d\.\d\d)", text).group(1))
    chosen = float(re.search(r"Selectivity, over the floor (\d\.\d\d)", text).group(1))
    assert position < 0.34
    assert chosen == pytest.approx(task - 0.34, abs=0.011)


def test_the_papers_values_are_attributed_to_the_papers_model(page: Page) -> None:
    before, _, rest = page.text.partition("Beside the paper")
    mine = rest.partition("The sites")[0]
    assert "Stable Diffusion v1.4 (paper) scenes (this run)" in mine
    assert "Dice, decoder mean, step 15 Table 1 0.85" in mine
    assert "and not a target" in mine
    assert "Stable Diffusion" not in before.partition("The paper Network")[2]


def test_floors_and_oracle_are_shown_beside_every_score(page: Page) -> None:
    heads = page.text[page.text.index("Where the information is, and when") :]
    assert "Grid oracle Mean mask All foreground Position alone" in heads
    assert "Grid oracle Mean depth map Position alone" in heads


@pytest.mark.parametrize("task", ["saliency", "depth"])
def test_a_position_control_raises_the_floor_where_it_is_better(tmp_path: Path, task: str) -> None:
    store = make_store(tmp_path, Made(test=9, sites=FEW, pictures=False))
    plain = collect(tables.load(store, CONFIG))[task]
    rows = [
        {**r, "dice": 0.5, "rmse": 0.6, "attempt": 2}
        for r in store.table("probes").to_pylist()
        if (r["control"], r["site"]) == ("position", "up.2.1")
    ]
    store.append("probes", rows)
    run = tables.load(store, CONFIG)
    found = collect(run)[task]
    place = [s.name for s in found.sites].index("up.2.1")
    expected = plain.floor.copy()
    expected[place] = 0.5 if task == "saliency" else 0.6
    np.testing.assert_allclose(found.floor, expected)
    assert found.floor_word("up.2.1") == "position alone"
    assert found.floor_word("mid.0") in ("mean mask or all foreground", "mean depth map")
    context = build_context(run, store)
    assert context.floors[task]["position alone"][place] == expected[place]
    claim = next(c for c in context.claims if c.key == f"linear-{task}")
    best = found.sites[summary.best_site(found)].name
    assert f"gain over the floor ({found.floor_word(best)})" in claim.evidence


def test_a_missing_position_control_is_mentioned(tmp_path: Path) -> None:
    store = make_store(tmp_path, Made(test=3, sites=FEW, extras=False, pictures=False))
    page = Page(Path(build.build(store, CONFIG)).read_text())
    assert "No probe of the position alone was fitted for the salient object and depth" in page.text


def test_other_site_families_are_compared_with_the_decoder(store: storage.Store, page: Page) -> None:
    rows = store.table("images").to_pylist()
    vae = [r for r in rows if (r["experiment"], r["step"], r["task"]) == ("vae", 15, "depth")]
    rmse = np.mean([r["rmse"] for r in vae])
    assert f"RMSE, VAE self-attention, step 15 Table 1 0.84 {rmse:.2f} (" in page.text
    text = page.text[page.text.index("Is it in the VAE?", 3000) :]
    assert "Step Dice, VAE Dice, UNet decoder RMSE, VAE RMSE, UNet decoder" in text
    conv = text[text.index("Convolution compared with self-attention") :]
    assert re.search(r"step 1 step 5 step 10 step 15 Block Convolution Attention", conv)
    assert re.search(r"mid (\d\.\d\d \(\S+\) ){7}", conv)
    smooth = conv[conv.index("Does a smoothness loss help") :]
    assert re.search(r"mid\.0 2 × 2 \d\.\d{3} \d\.\d{3} \S+ \([^)]*\) (< )?\d\.\d{3} (< )?\d\.\d{3}", smooth)


def test_transfer_matrix_is_indexed_by_training_and_application_step(store: storage.Store) -> None:
    drawn = build.draw(tables.load(store, CONFIG), store)
    panel = next(p for p in drawn.figures if p.name == "transfer-saliency-up-3-0")
    found = {(a, b): v for _, _, _, a, b, v in panel.rows}
    assert found[2, 5] == pytest.approx(0.9 - 0.12)
    assert found[15, 15] == pytest.approx(0.9)
    assert all(found[i, j] == pytest.approx(found[j, i]) for i, j in found)


def test_numbers_link_to_their_provenance(page: Page) -> None:
    links = {a["href"][1:] for a in page.all("a")}
    assert {"from-site-up-2-1", "from-vae", "from-emergence", "from-transfer"} <= links


def test_provenance_names_hash_cells_and_run_of_every_experiment(store: storage.Store, page: Page) -> None:
    text = page.text[page.text.index("Where the numbers come from") :]
    summary = tables.load(store, CONFIG).wandb_id("summary")
    assert re.search(rf"vae c7d9e0f2 30 10 {summary}", text)
    assert re.search(rf"transfer 7a45fe12 450 0 {summary}", text)
    assert re.search(r"up\.2\.1 \d+ 64 / 32 / 96 c7d9e0f2 \w+ \w+", text)


# -- grids that are not square


def test_grids_with_more_rows_than_columns_are_reported(tmp_path: Path) -> None:
    """As in a model whose latents have 96 rows and 64 columns."""
    store = make_store(tmp_path, Made(test=4, sites=(*FEW, "up.1.0"), stretch=1.5))
    drawn = build.draw(tables.load(store, CONFIG), store)
    page = Page(drawn.html)
    assert {*EXTRA, "network"} <= set(sections(page))
    grids = {s.name: s.grid for s in drawn.context.run.sites}
    assert grids == {"mid.0": (3, 2), "up.1.0": (6, 4), "up.2.1": (12, 8), "up.3.0": (24, 16)}
    assert "up.2.1 decoder 12 × 8 96 3" in page.text
    readings = [r for example in drawn.context.examples for r in example.readings]
    assert {p.shape for r in readings for p in r.predictions.values()} == {grids[r.site.name] for r in readings}
    assert {s.smooth.shape for s in drawn.context.smoothed} == {(6, 4)}
    sizes = [Image.open(io.BytesIO(p.data)).size for strip in drawn.strips for p in strip.pictures]
    assert len(sizes) > 50
    assert all(height == 1.5 * width for width, height in sizes)


# -- parts


def test_only_rows_of_the_present_settings_count() -> None:
    rows = pa.table(
        {
            "experiment": ["grid", "grid", "vae", "vae"],
            "stage_hash": ["old", "new", "first", "second"],
            "dice": [0.1, 0.2, 0.3, 0.4],
        }
    )
    assert current(rows, {"old"})["dice"].to_pylist() == [0.1, 0.4]
    assert current(rows, set())["dice"].to_pylist() == [0.2, 0.4]
    assert current(rows.slice(0, 0), set()).num_rows == 0


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from("ab"), st.integers(1, 4), st.floats(-5, 5) | st.just(float("nan"))), max_size=25)
)
def test_cube_is_the_mean_of_the_rows_that_name_a_place(rows: list[tuple[str, int, float]]) -> None:
    columns = list(zip(*rows, strict=True)) or [(), (), ()]
    kinds = (pa.string(), pa.int64(), pa.float64())
    arrays = [pa.array(list(c), t) for c, t in zip(columns, kinds, strict=True)]
    found = cube(pa.table(arrays, names=["site", "step", "dice"]), ("site", "step"), (("b", "a"), (1, 2, 3)), "dice")
    for i, site in enumerate("ba"):
        for j, step in enumerate((1, 2, 3)):
            mine = [v for s, t, v in rows if (s, t) == (site, step) and np.isfinite(v)]
            expected = np.mean(mine) if mine else np.nan
            np.testing.assert_allclose(found[i, j], expected, atol=1e-12)


def test_a_stored_probe_predicts_as_it_was_fitted() -> None:
    rng = np.random.default_rng(0)
    acts = rng.normal(size=(2, 5, 3)).astype(np.float16)
    two, one = rng.normal(size=(2, 4)), rng.normal(size=(1, 3))
    logits = acts.astype(float) @ two[:, :3].T + two[:, 3]
    share = np.exp(logits[..., 1]) / np.exp(logits).sum(-1)
    np.testing.assert_allclose(apply_probe({"weight": two}, acts, "saliency"), share, atol=1e-6)
    depth = apply_probe({"weight": one}, acts, "depth")
    np.testing.assert_allclose(depth, (acts.astype(float) @ one.T)[..., 0], atol=1e-5)
    units = {"hidden": rng.normal(size=(6, 4)), "weight": rng.normal(size=(1, 6))}
    inner = np.maximum(acts.astype(float) @ units["hidden"][:, :3].T + units["hidden"][:, 3], 0)
    expected = (inner @ units["weight"].T)[..., 0]
    np.testing.assert_allclose(apply_probe(units, acts, "depth"), expected, atol=1e-4)


def test_numbers_have_true_minus_signs() -> None:
    assert number(-0.126) == "−0.13"
    assert number(-0.001) == "0.00"
    assert number(float("nan")) == "—"
    assert "(0.10–0.30)" in interval(Interval(0.2, 0.1, 0.3))
    assert "(−0.10 to 0.30)" in interval(Interval(0.2, -0.1, 0.3))
    assert interval(Interval(0.2, float("nan"), float("nan"))) == "0.20"


def test_table_cells_are_escaped() -> None:
    table = Table("a < b", ["x", "y"], [["<i>", 1.0]])
    html = render("", "", "", [Section("s", "S", "S", [table, Paragraph("<i>")])])
    assert "<i>" not in html.partition("<main")[2]
    assert "a &lt; b" in html
    assert '<th scope="row">&lt;i&gt;</th><td class="n">1.00</td>' in html


# -- slow: time, and a real browser


@pytest.mark.slow
def test_a_full_grid_is_reported_in_time(full_report) -> None:
    store, _, seconds = full_report
    assert store.table("images").num_rows > 92_000
    assert store.exists("report/index.html")
    assert seconds < 20


@pytest.fixture
def site(store: storage.Store, html: str) -> Iterator[str]:
    """Address of the report folder on a server of its own, and a page that measures the report."""
    folder = Path(store.url) / "report"
    (folder / "probe.html").write_text(MEASURE)
    quiet = type("Quiet", (http.server.SimpleHTTPRequestHandler,), {"log_message": lambda *_: None})
    handler = functools.partial(quiet, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


MEASURE = """<!doctype html><title>measure</title><link rel="icon" href="data:,">
<iframe id="f" src="index.html" style="width:390px;height:800px;border:0"></iframe><p id="o"></p>
<script>document.getElementById("f").onload = e => {
  const d = e.target.contentDocument;
  const broken = [...d.images].filter(i => !i.complete || !i.naturalWidth).length;
  document.getElementById("o").textContent =
    `width=${d.documentElement.scrollWidth} images=${d.images.length} broken=${broken}`;
};</script>"""


def browse(address: str, profile: Path) -> subprocess.CompletedProcess[str]:
    assert CHROMIUM
    flags = (
        "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-sync "
        "--disable-background-networking --disable-component-update --enable-logging=stderr "
        "--virtual-time-budget=10000 --dump-dom"
    ).split()
    command = [CHROMIUM, *flags, f"--user-data-dir={profile}", address]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")
def test_a_browser_shows_it_whole_on_a_phone_without_errors(site: str, tmp_path: Path) -> None:
    seen = browse(f"{site}/probe.html", tmp_path)
    found = re.search(r"width=(\d+) images=(\d+) broken=(\d+)", seen.stdout)
    assert found, seen.stderr[-2000:]
    width, images, broken = map(int, found.groups())
    assert width <= 390
    assert images > 50
    assert broken == 0
    assert "CONSOLE" not in seen.stderr
