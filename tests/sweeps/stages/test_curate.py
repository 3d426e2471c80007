"""The verb `curate` on a tiny run: the checker's flags, manual decisions, and how the run records them."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
from transformers import CLIPConfig

import storage
from probing.labelling import safety
from support.tiny_runs import copied, settings
from sweeps.cli.main import main
from sweeps.config.load import load
from sweeps.runtime.run import reopen


@pytest.fixture(scope="module")
def words(sampled: Path, tiny_pipeline: Path, tmp_path_factory) -> list[str]:
    """Settings of a tiny run that is sampled and labelled."""
    run = copied(sampled, tmp_path_factory.mktemp("curation") / "run")
    found = ["scenes", *settings(tiny_pipeline, run, "curation.train=3", "curation.val=2", "curation.test=0")]
    assert main(["label", *found]) == 0
    return found


def output(words: list[str]) -> Path:
    return Path(next(w for w in words if w.startswith("output=")).removeprefix("output="))


def curation(words: list[str]) -> dict[int, tuple[bool, str, str]]:
    table = storage.open(str(output(words))).curation().to_pylist()
    return {row["sample"]: (row["keep"], row["reason"], row["split"]) for row in table}


def hashes(words: list[str]) -> dict[str, str]:
    config = load(words[0], words[1:])
    return vars(reopen(config).hashes)


def save_decisions(path: Path, words: list[str], rows: list[tuple[int, str, str]]) -> str:
    samples = storage.open(str(output(words))).samples().to_pydict()
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(["sample", "seed", "decision", "reason"])
    writer.writerows([i, samples["seed"][i], word, why] for i, word, why in rows)
    path.write_text(text.getvalue())
    return str(path)


def test_decisions_are_applied_recorded_and_reverted(words, tmp_path, capsys):
    assert main(["curate", *words]) == 0
    printed = capsys.readouterr().out
    assert str(output(words) / "curation" / "index.html") in printed
    rules, before = curation(words), hashes(words)
    assert all(keep for keep, _, _ in rules.values())
    file = save_decisions(tmp_path / "d.csv", words, [(3, "drop", "two heads"), (5, "keep", "")])
    assert main(["curate", *words, "--decisions", file]) == 0
    printed = capsys.readouterr().out
    assert "2 manual decisions applied" in printed
    assert "1 dropped (by hand: two heads)" in printed
    by_hand = curation(words)
    assert by_hand[3] == (False, "by hand: two heads", "")
    assert sum(keep for keep, _, _ in by_hand.values()) == 11
    after = hashes(words)
    assert {stage for stage in after if after[stage] != before[stage]} == {"curate", "probe", "intervene"}
    manifest = json.loads((output(words) / "manifest.json").read_text())
    assert manifest["decisions"]
    assert manifest["stages"] == after
    assert "two heads" in (output(words) / "curation" / "decisions.csv").read_text()
    assert '"reason": "two heads"' in (output(words) / "curation" / "index.html").read_text()
    assert json.loads((output(words) / "curation.json").read_text())["by_hand"] == {"keep": 1, "drop": 1}
    assert main(["verify", str(output(words)), "--recompute", "0"]) == 0
    capsys.readouterr()
    assert main(["curate", *words]) == 0  # without the file: they are the run's own now
    assert curation(words) == by_hand
    assert main(["curate", *words, "--decisions", save_decisions(tmp_path / "none.csv", words, [])]) == 0
    assert curation(words) == rules
    assert hashes(words) == before


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ("sample,seed,decision\n0,1,keep\n", "row 2: sample 0 has seed"),
        ("sample,verdict\n", "no column seed, decision"),
        (None, "no file"),
    ],
)
def test_decisions_that_do_not_fit_are_one_line_and_change_nothing(words, tmp_path, capsys, rows, message):
    path = tmp_path / "d.csv"
    if rows is not None:
        path.write_text(rows)
    before = hashes(words)
    assert main(["curate", *words, "--decisions", str(path)]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert hashes(words) == before


def test_too_few_kept_samples_still_give_the_page(words, capsys):
    page = output(words) / "curation" / "index.html"
    page.unlink(missing_ok=True)
    assert main(["curate", *words, "curation.train=11"]) == 2
    assert "too few" in capsys.readouterr().err
    assert page.exists()


def save_checker(folder: Path, picture: np.ndarray) -> Path:
    """A narrow safety checker that flags one picture and hardly any other."""
    torch.manual_seed(0)
    narrow = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = CLIPConfig(
        vision_config={**narrow, "image_size": 32, "patch_size": 8}, text_config=narrow, projection_dim=16
    )
    network = StableDiffusionSafetyChecker(config).eval()
    with torch.no_grad():
        pixels = safety.clip_pixels(picture[None], 32)
        seen = network.visual_projection(network.vision_model(pixels)[1])[0]
        network.concept_embeds.copy_(-seen.expand_as(network.concept_embeds))
        network.concept_embeds[3] = seen
        network.concept_embeds_weights.fill_(2.0)
        network.concept_embeds_weights[3] = 0.998  # scores are rounded to three digits
        network.special_care_embeds_weights.fill_(2.0)
    network.save_pretrained(folder / "safety_checker")
    return folder


def test_flagged_images_are_dropped_with_that_reason(words, tmp_path, capsys):
    images = storage.open(str(output(words))).read_images("trained")
    checker = save_checker(tmp_path, images[6])
    flags = safety.load(str(checker), torch.device("cpu"))(images)
    assert flags[6]
    assert flags.sum() < 6
    with_checker = [*words, "curation.safety=true", f"curation.safety_weights={checker}", "curation.train=2"]
    assert main(["curate", *with_checker]) == 0
    assert f"{flags.sum()} dropped (flagged by the safety checker)" in capsys.readouterr().out
    found = curation(words)
    assert {i for i, (keep, _, _) in found.items() if not keep} == set(np.flatnonzero(flags))
    assert found[6][1] == "flagged by the safety checker"
    (checker / "safety_checker" / "model.safetensors").unlink()
    (output(words) / "curation.json").unlink()
    assert main(["curate", *with_checker]) == 0  # flags are kept: nothing is loaded again
    assert curation(words) == found


@pytest.mark.parametrize("named", ["FOLDER/none", "CompVis/stable-diffusion-safety-checker"])
def test_a_missing_checker_or_one_without_its_commit_is_one_line(words, tmp_path, capsys, named):
    named = named.replace("FOLDER", str(tmp_path))
    with_checker = [*words, "curation.safety=true", f"curation.safety_weights={named}"]
    assert main(["curate", *with_checker]) == 2
    error = capsys.readouterr().err
    assert "curation.safety_weights" in error
    assert error.count("\n") == 1
