"""Curation: rules with reasons, manual decisions, and the split."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from probing.dataset import manual_decisions
from probing.dataset.curation import CurationConfig, Measures, curate, drop_reason, measure, split_by_prompt
from probing.dataset.manual_decisions import Choice

GOOD = Measures(contrast=60.0, saturation=0.4, plain=0.1, foreground=0.3)
STRICT = CurationConfig(min_saturation=0.05, max_plain=0.6, max_foreground=0.8, safety=True)


def test_split_has_no_prompt_in_two_parts():
    prompts = [f"p{i // 2}" for i in range(40)]
    parts = split_by_prompt(prompts, CurationConfig(train=8, val=4, test=0))
    assert {n: parts.count(n) for n in ("train", "val", "test")} == {"train": 16, "val": 8, "test": 16}
    for i in range(0, 40, 2):
        assert parts[i] == parts[i + 1]
    shuffled = split_by_prompt(prompts[::-1], CurationConfig(train=8, val=4, test=0))
    assert shuffled[::-1] == parts


def test_too_few_prompts_are_refused():
    with pytest.raises(ValueError, match="too few for train 8"):
        split_by_prompt(["a", "b"], CurationConfig(train=8, val=4))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({}, ""),
        ({"contrast": 1.9}, "blank"),
        ({"finite": False}, "label not finite"),
        ({"flagged": True}, "flagged by the safety checker"),
        ({"saturation": 0.04}, "greyscale"),
        ({"plain": 0.7}, "line art or flat colour"),
        ({"foreground": 0.0}, "no salient object"),
        ({"foreground": 0.9}, "salient object fills the image"),
    ],
)
def test_each_rule_has_its_reason(change, reason):
    assert drop_reason(replace(GOOD, **change), STRICT) == reason


@pytest.mark.parametrize("change", [{"flagged": True}, {"saturation": 0.0}, {"plain": 0.9}, {"foreground": 0.99}])
def test_rules_that_are_off_drop_nothing(change):
    assert drop_reason(replace(GOOD, **change), CurationConfig()) == ""


def test_measures_of_known_pictures():
    grey = np.repeat(np.arange(64, dtype=np.uint8).reshape(8, 8, 1) * 4, 3, axis=2)
    drawing = np.full((8, 8, 3), 255, np.uint8)
    drawing[3, :, :] = 0
    red = np.zeros((8, 8, 3), np.uint8)
    red[..., 0] = np.arange(64).reshape(8, 8) * 4
    masks = np.zeros((3, 8, 8), bool)
    masks[0, :2] = True
    depth = np.ones((3, 8, 8), np.float32)
    depth[2, 1, 1] = np.nan
    found = measure(np.stack([grey, drawing, red]), masks, depth, [False, True, False])
    assert [m.saturation for m in found] == pytest.approx([0, 0, 63 / 64])
    assert [m.plain for m in found] == [4 / 64, 56 / 64, 4 / 64]
    assert [m.foreground for m in found] == [0.25, 0, 0]
    assert [m.finite for m in found] == [True, True, False]
    assert [m.flagged for m in found] == [False, True, False]
    assert found[0].contrast == pytest.approx(grey.std())


def test_curation_keeps_given_splits_and_names_every_loss():
    measures = {0: GOOD, 1: replace(GOOD, foreground=0.0), 2: GOOD, 4: GOOD}
    found = curate(measures, list("abcde"), ["train", "test", "test", "test", "test"], CurationConfig())
    assert [(d.sample, d.keep, d.reason, d.split) for d in found] == [
        (0, True, "", "train"), (1, False, "no salient object", ""), (2, True, "", "test"),
        (3, False, "shard failed", ""), (4, True, "", "test"),
    ]  # fmt: skip


def test_manual_decisions_overrule_the_rules_but_not_what_is_missing():
    empty, small = replace(GOOD, foreground=0.0), replace(GOOD, foreground=0.001)
    measures = {0: GOOD, 1: GOOD, 2: empty, 3: small, 4: replace(GOOD, contrast=0.0), 6: GOOD}
    choices = {i: Choice(True) for i in range(2, 6)} | {0: Choice(False, "two heads"), 1: Choice(False)}
    config = CurationConfig(min_foreground=0.01)
    found = curate(measures, list("abcdefg"), ["test"] * 7, config, choices)
    assert [d.reason for d in found] == [
        "by hand: two heads", "by hand: no reason given", "no salient object", "", "", "shard failed", ""
    ]  # fmt: skip


def test_a_manual_drop_leaves_no_prompt_in_two_parts():
    prompts = [f"p{i // 2}" for i in range(40)]
    config = CurationConfig(train=8, val=4)
    found = curate(dict.fromkeys(range(40), GOOD), prompts, [""] * 40, config, {4: Choice(False), 21: Choice(False)})
    parts = {}
    for decision in found:
        if decision.keep:
            parts.setdefault(prompts[decision.sample], set()).add(decision.split)
    assert all(len(names) == 1 for names in parts.values())
    assert len(parts) == 20


SEEDS = [7, 8, 9]


def test_decisions_round_trip():
    choices = {2: Choice(False, 'odd, "quoted"'), 0: Choice(True)}
    data = manual_decisions.render(choices, SEEDS, ["a\nb", "c", "d"])
    assert manual_decisions.parse(data, "d.csv", SEEDS) == choices
    assert data == manual_decisions.render(dict(sorted(choices.items())), SEEDS, ["a\nb", "c", "d"])
    windows = b"\xef\xbb\xbf" + data.replace(b"\n", b"\r\n")
    assert manual_decisions.parse(windows, "d.csv", SEEDS) == choices


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("sample,verdict\n0,keep\n", "no column seed, decision; .*sample, verdict"),
        ("", "no column sample, seed, decision; .*none"),
        ("sample,seed,decision\n0,7,keep\n9,8,keep\n", "row 3: no sample 9 .* 3"),
        ("sample,seed,decision\n1,7,keep\n", "row 2: sample 1 has seed 8, not 7"),
        ("sample,seed,decision\n0,7,maybe\n", "row 2: decision 'maybe'"),
        ("sample,seed,decision\nx,7,keep\n", "row 2: .*sample 'x'"),
        ("sample,seed,decision\n0,7\n", "row 2: number of fields"),
        ("sample,seed,decision\n0,7,keep,x\n", "row 2: number of fields"),
    ],
)
def test_broken_decisions_are_named(text, message):
    with pytest.raises(ValueError, match=message) as caught:
        manual_decisions.parse(text.encode(), "d.csv", SEEDS)
    assert str(caught.value).startswith("--decisions: d.csv")
    assert "\n" not in str(caught.value)


def test_decisions_in_another_encoding_are_named():
    with pytest.raises(ValueError, match="d.csv.*UTF-8"):
        manual_decisions.parse("sample,seed,decision,reason\n0,7,drop,café\n".encode("latin-1"), "d.csv", SEEDS)
