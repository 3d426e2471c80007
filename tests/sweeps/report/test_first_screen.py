"""The first screen answers where, when and whether it is used; the explorer's data are the stored predictions."""

from __future__ import annotations

import base64
import io
import json
import re
from collections.abc import Iterator
from dataclasses import replace
from html import unescape
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

import storage
from probing.statistics import Interval
from support.browser import CHROMIUM, Browser
from support.report_store import CONFIG, SHAPES, Made, image_rows, make_store, probe_rows, put_table, write_samples
from sweeps.analysis import summary, tables
from sweeps.analysis.scores import collect
from sweeps.report import build
from sweeps.report.build import Drawn
from sweeps.report.gallery import explorer as gallery
from sweeps.report.gallery.probes import STRIP, pick
from sweeps.report.sections.edited_images import outline
from sweeps.report.sections.overview import HERO

SITES = ("mid.0", "up.1.0", "up.2.1", "up.3.0")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> storage.Store:
    return make_store(tmp_path_factory.mktemp("run"), Made(test=8, sites=SITES))


@pytest.fixture(scope="module")
def drawn(store: storage.Store) -> Drawn:
    run = tables.load(store, CONFIG)
    found = build.draw(run, store)
    build.write(store, found)
    return found


def text(html: str) -> str:
    html = re.sub(r"<(script|style|svg)\b.*?</\1>", " ", html, flags=re.S)
    return " ".join(unescape(re.sub(r"<[^>]+>", " ", html)).split())


def test_the_first_screen_gives_each_answer_as_a_number_with_its_interval(drawn: Drawn) -> None:
    screen = text(drawn.html.partition('class="answers"')[2].partition('class="chips"')[0])
    for task, scores in drawn.context.scores.items():
        best = summary.best_group(scores)[0]
        last = scores.values[scores.variant_index("trained"), best, -1].mean()
        share = 100 * (last - scores.floor[best]) / (scores.oracle_means[best] - scores.floor[best])
        assert re.search(rf"{share:.0f} % \(\d+–\d+\)", screen), task
        step = summary.emergence(scores, "trained", scores.sites[best].name).step.estimate
        assert f"step {step:.0f} (" in screen
    assert "Where can they be read?" in screen
    assert re.search(r"Does the model use it\? Objects \d\.\d\d \(\d\.\d\d–\d\.\d\d\) Depth \d\.\d\d \(", screen)
    chips = text(drawn.html.partition('class="chips"')[2].partition("</ul>")[0])
    assert all(f"{claim.verdict}" in chips for claim in drawn.context.claims)
    assert chips.count("supported") + chips.count("not tested") >= 5


def test_steps_shown_follow_the_number_of_steps() -> None:
    assert pick(range(1, 16), HERO) == [1, 3, 5, 9, 15]
    assert pick(range(1, 16), STRIP) == [1, 2, 3, 5, 10, 15]
    assert pick(range(1, 51), HERO) == [1, 8, 15, 29, 50]
    assert pick([4], HERO) == [4]
    assert pick([2, 7], HERO) == [2, 7]


def explorer_data(html: str) -> dict[str, Any]:
    return json.loads(re.search(r'<script type="application/json">(.*?)</script>', html, re.S)[1])


def pixels(address: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(address.partition(",")[2]))))


def test_the_explorer_holds_the_prediction_of_every_site_and_step(drawn: Drawn) -> None:
    data, shown = explorer_data(drawn.html), drawn.context.exploration
    assert shown is not None
    reader = drawn.context.run.reader
    assert reader is not None
    image, explored = data["images"][0], shown.images[0]
    for site, step, task in (("up.2.1", 5, "saliency"), ("up.3.0", 15, "depth")):
        i = next(k for k, s in enumerate(data["sites"]) if s["name"] == site)
        rows, columns = data["sites"][i]["grid"]
        top, left = data["steps"].index(step) * data["tile"][0], i * data["tile"][1]
        tile = pixels(image["maps"][task])[top : top + rows, left : left + columns]
        found = next(s for s in drawn.context.run.sites if s.name == site)
        expected = reader.predict("trained", found, step, task, [image["sample"]])
        assert expected is not None
        low, high = explored.limits[task]
        np.testing.assert_allclose(tile / 255, np.clip((expected[0] - low) / (high - low), 0, 1), atol=0.003)
    scores = drawn.context.scores["depth"]
    of = data["tasks"][1]
    np.testing.assert_allclose(of["every"], scores.means[0], atol=0.0006)
    assert data["sites"][of["best"]]["name"] == scores.sites[summary.best_group(scores)[0]].name
    assert pixels(image["frames"]).shape[1] == len(image["decoded"]) * pixels(image["finished"]).shape[1]


def test_a_large_model_is_explored_with_fewer_sites(drawn: Drawn, monkeypatch: pytest.MonkeyPatch) -> None:
    run, best = drawn.context.run, [s for s in drawn.context.run.sites if s.name == "up.3.0"]
    monkeypatch.setattr(gallery, "SHOWN", 2.0 * 256 * 15 + 2.0 * 64 * 15)
    _, sites = gallery._affordable(run, 8, [6], best, range(15))
    assert [s.name for s in sites] == ["mid.0", "up.1.0", "up.3.0"]
    monkeypatch.setattr(gallery, "READ", 0)
    assert gallery._affordable(run, 8, [6], best, range(15))[1] == best  # never none


def test_fine_maps_are_averaged() -> None:
    maps = np.arange(64.0 * 40).reshape(1, 64, 40)
    coarse = gallery._coarse(maps)
    assert coarse.shape == (1, 16, 10)
    assert coarse[0, 3, 2] == maps[0, 12:16, 8:12].mean()


def test_the_outline_runs_along_the_border_of_the_mask() -> None:
    mask = np.zeros((4, 8), bool)
    mask[1:3, 2:4] = True
    assert outline(mask) == "M0.25 0.25H0.5M0.25 0.75H0.5M0.25 0.25V0.75M0.5 0.25V0.75"
    assert outline(np.zeros((4, 4), bool)) == ""


def test_every_figure_and_table_of_scores_says_of_how_many_images(drawn: Drawn) -> None:
    silent = [p.name for p in drawn.figures if not re.search(r">n = \d+ images<", p.svg)]
    assert silent == []
    for table in re.findall(r"<table.*?</table>", drawn.html, flags=re.S):
        if 'class="ci"' in table:
            assert re.search(r"n = \d+ images", table), table[:300]


def test_sentences_have_no_identifiers_and_no_negative_zero(drawn: Drawn) -> None:
    shown = re.sub(r"<(pre|code)\b.*?</\1>", " ", drawn.html.partition('<section id="costs"')[0], flags=re.S)
    found = re.findall(r"(?<![\w.])[a-z]+_[a-z_]+\b", text(shown))
    assert found == []
    assert not re.search(r"[−-]0\.0+(?!\d)", text(drawn.html))


# -- networks that are no UNet


def test_a_transformer_without_encoder_and_decoder_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = tuple(f"block.{i}.{kind}" for i in range(9) for kind in ("self", *["mlp"] * (i < 2)))
    monkeypatch.setitem(SHAPES, "block.0.self", (8, 64))
    for name in names:
        monkeypatch.setitem(SHAPES, name, (8, 64))
    made = Made(test=8, sites=names, steps=tuple(range(1, 29)), pictures=False, extras=False)
    layout = storage.Layout(
        samples=made.samples, shard=made.samples, variants=made.variants, image=made.image, latent=(4, 4, 4),
        sites=tuple(storage.SiteShape(n, 64, 3) for n in names), steps=28,
    )  # fmt: skip
    store = storage.Store.create(str(tmp_path), layout, durable=False)
    write_samples(store, made)
    rows = pa.concat_tables([image_rows(made, c, v) for c, v in (("none", made.variants), ("position", ("trained",)))])
    put_table(store, "images", rows)
    put_table(store, "probes", probe_rows(rows, True, made))
    drawn = build.draw(tables.load(store, CONFIG), store)
    scores = collect(drawn.context.run)["depth"]
    assert [s.name for s in scores.sites] == list(names)
    assert scores.lead_part == "all"
    assert len(scores.blocks) == 7 + 2  # each kind has groups of its own
    assert set(drawn.context.headlines) == {"saliency", "depth"}
    figures = {p.name: p for p in drawn.figures}
    assert len(figures["heatmap-depth-trained"].rows) == 11 * 28
    assert {"block.0.self to block.1.self", "block.8.self", "block.0.mlp"} <= set(scores.blocks)
    assert {"attention", "mlp"} <= {row[2] for row in figures["curves-depth"].rows}  # one line for each kind
    shown = text(drawn.html)
    assert "Averaged over all sites" in shown
    assert "decoder mean" not in shown.partition("Beside the paper")[0].lower()
    assert not re.search(r"\bnan\b", shown)


# -- numbers in sentences


def test_a_rise_that_is_none_is_called_so(drawn: Drawn) -> None:
    context = drawn.context
    scores = context.scores["depth"]
    values = np.flip(scores.values, axis=2)
    flipped = replace(context, scores={**context.scores, "depth": replace(scores, values=values)})
    shown = text(build.draw_context(flipped).html)
    assert "no rise" in shown
    assert re.search(r"for depth there is no such step \(no(t above the floor| rise)\)", shown)


def test_no_rise_is_the_tables_entry_too(drawn: Drawn) -> None:
    from sweeps.report.sections.results import step_of

    scores = drawn.context.scores["depth"]
    rise = summary.Rise(Interval(1.0, 1.0, 2.0), Interval(0.0, -0.1, 0.1))
    assert step_of(rise, scores) == "no rise"
    better = summary.Rise(Interval(3.0, 2.0, 4.0), Interval(0.2, 0.1, 0.3))
    assert text(step_of(better, scores)) == "step 3 (2–4)"
    assert text(step_of(better, replace(scores, steps=(1, 3, 9)))) == "at or before step 3 (2–4)"


# -- in a browser


@pytest.fixture
def browser(store: storage.Store, drawn: Drawn, tmp_path: Path) -> Iterator[Browser]:
    with Browser(tmp_path / "profile", tmp_path) as tab:
        tab.open(Path(store.url) / "report/index.html")
        yield tab


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")
def test_the_explorer_is_used_by_keyboard_and_by_a_click_on_a_heatmap(browser: Browser) -> None:
    said = "document.querySelector('.said').textContent"
    assert browser.evaluate("document.querySelector('.static').hidden")
    browser.evaluate("document.querySelector('.explorer .step').focus()")
    for _ in range(4):
        browser.press("ArrowRight")
    assert ", step 10." in browser.evaluate(said)  # the store has probes at six steps
    canvas = "document.querySelector('canvas.map')"
    before = browser.evaluate(f"{canvas}.toDataURL()")
    browser.evaluate("document.querySelector('select.site').focus()")
    browser.press("ArrowUp")
    assert browser.evaluate(f"{canvas}.toDataURL()") != before
    browser.evaluate("document.querySelector('.explorer .step').focus()")
    for _ in range(3):
        browser.press("ArrowLeft")
    browser.evaluate("document.querySelector('.play').focus()")
    browser.press("Enter")
    assert browser.evaluate("document.querySelector('.play').getAttribute('aria-pressed')") == "true"
    browser.press("Enter")
    browser.evaluate("""(() => {
      const figure = document.querySelector('[data-name=heatmap-depth-trained]');
      const box = figure.querySelector('image').getBoundingClientRect();
      const at = {bubbles: true, clientX: box.left + box.width * 2.5 / 15, clientY: box.top + box.height * 3.5 / 4};
      figure.querySelector('image').dispatchEvent(new MouseEvent('click', at));
    })()""")
    assert browser.evaluate(said).startswith("up.3.0, step 3.")
    assert browser.errors == []


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")
def test_links_open_folds_tables_sort_and_sliders_uncover(browser: Browser) -> None:
    browser.evaluate("location.hash = '#sites'")
    browser.wait("document.getElementById('sites').closest('details').open")
    order = "[...document.querySelectorAll('#sites table')[0].tBodies[0].rows].map(r => r.cells[1].textContent)"
    browser.evaluate("document.querySelectorAll('#sites table')[0].querySelectorAll('.sort')[1].click()")
    values = [float(v.split()[0]) for v in browser.evaluate(order)]
    assert values == sorted(values, reverse=True)
    assert browser.evaluate("document.querySelectorAll('.pair.over').length") > 0
    browser.evaluate("document.querySelector('.pair input').focus()")
    clip = "document.querySelector('.pair .after img').style.clipPath"
    before = browser.evaluate(clip)
    browser.press("ArrowRight")
    assert browser.evaluate(clip) != before
    assert browser.errors == []
