"""The curation page in a real browser: opening, keys, decisions after a reload, the saved CSV."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from probing.dataset.manual_decisions import Choice, parse, render
from support import browser
from sweeps.curation.page import Shown, build

pytestmark = [pytest.mark.slow, pytest.mark.skipif(browser.CHROMIUM is None, reason="no Chromium on this machine")]
PROMPTS = ['a "quoted", odd café', "two\nlines", "</script><b>bold</b>", "a red box", "a dog", "a cat"]


def shown(i: int, side: int, rng: np.random.Generator) -> Shown:
    """A sample with a smooth image whose JPEG is as large as that of a photograph."""
    coarse = Image.fromarray(rng.integers(0, 256, (side // 8, side // 8, 3), dtype=np.uint8))
    image = np.asarray(coarse.resize((side, side), Image.Resampling.BICUBIC))
    mask = np.zeros((side, side), bool)
    mask[side // 4 : side // 2, side // 4 : side // 2] = True
    depth = np.add.outer(np.arange(side), np.arange(side)).astype(np.float32)
    rule = "no salient object" if i % 5 == 4 else ""
    return Shown(i, 1000 + i, PROMPTS[i % len(PROMPTS)], rule, 0.25, image, mask, depth)


def test_depth_button_is_hidden_without_depth(tab, tmp_path):
    rng = np.random.default_rng(0)
    flat = (replace(shown(i, 64, rng), depth=None) for i in range(2))
    path = tmp_path / "index.html"
    path.write_text(build("Curation", "test", flat, {}))
    tab.open(path)
    assert tab.evaluate("document.getElementById('depth').hidden")
    tab.open(page(path, 2))
    assert not tab.evaluate("document.getElementById('depth').hidden")


def page(path: Path, count: int, side: int = 64, choices: dict[int, Choice] | None = None) -> Path:
    rng = np.random.default_rng(0)
    html = build("Curation", "test", (shown(i, side, rng) for i in range(count)), choices or {})
    path.write_text(html)
    return path


@pytest.fixture
def tab(tmp_path):
    with browser.Browser(tmp_path / "profile", tmp_path) as opened:
        yield opened
        assert opened.errors == []


def saved(tab: browser.Browser, folder: Path) -> bytes:
    path = folder / "decisions.csv"
    path.unlink(missing_ok=True)
    tab.press("s")
    until = time.monotonic() + 60
    while not path.exists():
        assert time.monotonic() < until
        time.sleep(0.05)
    return path.read_bytes()


def test_keys_decide_and_the_saved_csv_is_read_back(tab, tmp_path):
    tab.open(page(tmp_path / "index.html", 6))
    tab.press("k")
    tab.press("d")
    tab.press("3")
    tab.press("d")
    tab.evaluate("document.getElementById('own').focus()")
    tab.type('odd, "very" odd')
    tab.press("Enter")
    tab.press("k")
    tab.press("ArrowLeft")
    tab.press("u")
    expected = {0: Choice(True), 1: Choice(False, "unsafe"), 2: Choice(False, 'odd, "very" odd')}
    data = saved(tab, tmp_path)
    seeds = [1000 + i for i in range(6)]
    assert parse(data, "decisions.csv", seeds) == expected
    assert render(expected, seeds, PROMPTS) == data


def test_decisions_survive_a_reload_and_count(tab, tmp_path):
    path = page(tmp_path / "index.html", 6)
    tab.open(path)
    for key in ("k", "d", "1"):
        tab.press(key)
    before = saved(tab, tmp_path)
    tab.open(path)
    tab.call("Page.reload")
    tab.wait("document.readyState === 'complete' && document.querySelectorAll('.card.keep').length === 1")
    assert tab.evaluate("document.querySelectorAll('.card.drop').length") == 1
    assert "1 kept, 1 dropped" in tab.evaluate("document.getElementById('count').textContent")
    assert saved(tab, tmp_path) == before


def test_applied_decisions_are_shown_and_can_be_removed(tab, tmp_path):
    tab.open(page(tmp_path / "index.html", 6, choices={0: Choice(False, "unsafe"), 4: Choice(True)}))
    assert "dropped manually: unsafe" in tab.evaluate("document.querySelector('.card.drop .why').textContent")
    tab.press("u")
    decided = parse(saved(tab, tmp_path), "decisions.csv", [1000 + i for i in range(6)])
    assert decided == {4: Choice(True)}


def test_filters_find_and_layers(tab, tmp_path):
    tab.open(page(tmp_path / "index.html", 12))
    count = "document.querySelectorAll('#grid .card').length"
    assert tab.evaluate(count) == 12
    names = tab.evaluate("[...document.getElementById('filter').options].map(o => o.value)")
    assert names == ["all", "undecided", "decided", "in use", "dropped", "rule: no salient object"]
    for _ in range(4):
        tab.press("f")
    assert tab.evaluate(count) == 2
    tab.press("f")
    tab.press("f")
    tab.evaluate("find = document.getElementById('find'); find.value = 'CAFÉ'; find.oninput(); find.blur()")
    assert tab.evaluate(count) == 2
    assert tab.evaluate("document.querySelector('b') === null")  # markup in a prompt stays text
    tab.wait("document.querySelector('#grid img.mask')?.naturalWidth === 64")
    look = "getComputedStyle(document.querySelector('#grid img.{}')).display"
    assert tab.evaluate(look.format("mask")) == "block"
    assert tab.evaluate(look.format("depth")) == "none"
    tab.press("m")
    tab.press("p")
    assert tab.evaluate(look.format("mask")) == "none"
    assert tab.evaluate(look.format("depth")) == "block"
    tab.press("Enter")
    assert tab.evaluate("document.getElementById('large').open")


def test_a_thousand_images_open_in_three_seconds_and_move_without_stutter(tab, tmp_path):
    path = page(tmp_path / "index.html", 1000, side=512)
    assert 10e6 < path.stat().st_size < 60e6
    wall, processor = [], []
    tab.call("Performance.enable")
    for _ in range(4):
        tab.call("Page.navigate", url="about:blank")
        tab.wait("location.href === 'about:blank'")
        start = time.monotonic()
        tab.open(path)
        tab.wait("document.querySelectorAll('.card').length === 1000 && document.querySelector('.image')?.complete")
        wall.append(time.monotonic() - start)
        processor.append(spent(tab) - sum(processor))
        if wall[-1] < 3:
            break
    print(f"open: wall {wall}, processor {processor}, {path.stat().st_size / 1e6:.0f} MB")
    assert min(wall) < 3 or min(processor) < 1.5  # on a busy machine, wall time grows but processor time does not
    assert tab.evaluate("document.querySelectorAll('#grid img').length") < 300  # only cards in view
    before = spent(tab)
    tab.evaluate(
        """(async () => { for (let n = 0; n < 40; n++) { for (let j = 0; j < 20; j++) document.body.dispatchEvent(
        new KeyboardEvent('keydown', {key: 'ArrowRight', bubbles: true}));
        await new Promise(requestAnimationFrame); } })()"""
    )
    assert tab.evaluate("document.querySelector('[aria-current]').dataset.at") == "800"
    assert (spent(tab) - before) / 800 < 0.016  # processor seconds of one move: a frame at 60 Hz


def spent(tab: browser.Browser) -> float:
    """Processor seconds that the page has used so far."""
    return {m["name"]: m["value"] for m in tab.call("Performance.getMetrics")["metrics"]}["ProcessTime"]
