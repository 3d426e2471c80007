"""Training on from the shipped weights within a number of minutes: what it leaves, whatever happens."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from probing.scenes import dataset, evaluate, training, weights
from probing.scenes.denoisers.speed import EAGER, GRAPHS
from probing.scenes.limited import run as limited
from probing.scenes.limited import trial
from probing.scenes.limited.trial import DIT, UNET, Candidate
from probing.scenes.optimise import Loop
from sweeps.cli.main import main

CONFIG = training.TrainingConfig(renders=4, workers=1)
SHIPPED = {DIT: "dit/transformer", UNET: "pipeline/unet"}
WRITTEN = {DIT: "dit", UNET: "."}


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with four renders; the trial finds that two latents a step are best."""
    (tmp_path / "work" / "renders").mkdir(parents=True)
    for part in dataset.parts(tmp_path / "work" / "renders", "train", 4):
        dataset._render_part(part)
    found = Candidate(2, EAGER, 10.0)
    monkeypatch.setattr(trial, "choose", lambda *arguments: (found, [found, Candidate(2, GRAPHS, error="no card")]))
    return tmp_path / "work"


def changed(target: Path, network: str) -> bool:
    """Whether the written denoiser has other weights than the shipped one."""
    names = SHIPPED[network]
    before = training.load_single(weights.folder() / names)
    after = load_file(next((target / names).glob("*.safetensors")))
    assert before.keys() == after.keys()
    return any(not torch.equal(value, after[name].float()) for name, value in before.items())


@pytest.mark.parametrize("network", [DIT, UNET])
def test_it_ends_in_time_with_weights_and_card(network: str, work: Path, tmp_path: Path) -> None:
    target, lines = tmp_path / "target", []
    started = time.monotonic()
    assert limited.run(work, target, network, CONFIG, 0.05, lines.append)
    # measuring 100 images takes longer than what is left, so that the alarm rings; then the model is being loaded
    assert time.monotonic() - started < 3 + 6
    assert changed(target, network)
    card = (target / WRITTEN[network] / "CARD.md").read_text()
    assert "rendered 4 scenes" in card
    assert "batch     2, graphs   no card" in card
    assert "Not measured: the time was over." in card
    assert any("over before the weights were measured" in line for line in lines)
    assert (work / network / "checkpoint.safetensors").exists()


def test_the_card_says_how_good_the_weights_are(work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = dataset.draw([1, 2], 32).images
    monkeypatch.setattr(limited, "RESERVE", 0.95)
    monkeypatch.setattr(
        evaluate, "measure_denoiser", lambda *arguments: (evaluate.Denoising(42, (0.1, 0.2, 0.3)), images)
    )
    assert limited.run(work, tmp_path / "target", DIT, CONFIG, 0.1, lambda line: None)
    card = (tmp_path / "target" / "dit" / "CARD.md").read_text()
    assert "42 images have the colours" in card
    assert (tmp_path / "target" / "dit" / "contact.jpg").exists()


def test_a_training_that_breaks_leaves_what_it_learnt(
    work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    advance = Loop.advance

    def breaks(loop: Loop, loss: Any) -> torch.Tensor:
        if loop.step == 2:
            raise RuntimeError("the card is gone")
        return advance(loop, loss)

    monkeypatch.setattr(Loop, "advance", breaks)
    with pytest.raises(RuntimeError, match="the card is gone"):
        limited.run(work, tmp_path / "target", DIT, CONFIG, 5, lambda line: None)
    assert changed(tmp_path / "target", DIT)
    assert "2 more steps" in (tmp_path / "target" / "dit" / "CARD.md").read_text()


def test_sigterm_ends_the_training_and_writes_it(work: Path, tmp_path: Path) -> None:
    def progress(line: str) -> None:
        if line.startswith("dit: step") or "latents" in line:
            os.kill(os.getpid(), signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM)
    assert not limited.run(work, tmp_path / "target", DIT, CONFIG, 60, progress)
    assert signal.getsignal(signal.SIGTERM) is before
    assert changed(tmp_path / "target", DIT)


SCRIPT = """
import time
print("ready", flush=True)
print('{"batch": 4, "way": "eager", "images": 50.0}', flush=True)
print('{"batch": 8, "way": "eager", "images": 100.0}', flush=True)
print('{"batch": 8, "way": "graphs", "images": 0.0, "error": "RuntimeError: no"}', flush=True)
time.sleep(600)
"""


def test_the_trial_takes_what_answered_in_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "script.py").write_text(SCRIPT)
    real = subprocess.Popen

    def start(command: list[str], **options: Any) -> subprocess.Popen[str]:
        return real([sys.executable, str(tmp_path / "script.py")], **options)

    monkeypatch.setattr(trial.subprocess, "Popen", start)
    lines: list[str] = []
    chosen, tried = trial.choose(DIT, "cpu", 1.0, Candidate(1, EAGER), lines.append)
    assert (chosen.batch, chosen.way, len(tried)) == (8, EAGER, 3)
    assert lines[-2:] == ["trial: its time is over", "trial: batch 8, eager"]


def test_a_smaller_batch_is_preferred_if_it_is_nearly_as_fast() -> None:
    fallback = Candidate(1, EAGER)
    assert trial.best([], fallback) == fallback
    assert trial.best([Candidate(4, EAGER, error="no")], fallback) == fallback
    found = [Candidate(4, EAGER, 50), Candidate(4, GRAPHS, 85), Candidate(8, EAGER, 70), Candidate(8, GRAPHS, 100)]
    assert trial.best(found, fallback) == found[1]


@pytest.mark.parametrize("network", [DIT, UNET])
@pytest.mark.filterwarnings("ignore:CUDA is not available")
def test_a_candidate_is_timed_or_says_why_not(network: str, tmp_path: Path) -> None:
    assert trial.measure(network, "cpu", Candidate(1, EAGER), tmp_path / "a").images > 0
    assert "Error" in trial.measure(network, "cpu", Candidate(1, GRAPHS), tmp_path / "b").error


@pytest.mark.parametrize(
    "words", [["--minutes", "0"], ["--minutes", "1", "--steps", "3"], ["--minutes", "1", "--focus"]]
)
def test_what_does_not_go_together_is_one_line(words: list[str], tmp_path: Path, capsys: Any) -> None:
    assert main(["train-scenes", str(tmp_path / "w"), str(tmp_path / "t"), "--start", "shipped", *words]) == 2
    assert "--start shipped: give --minutes" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["--attention", "1.5"], "--attention 1.5: must be from 0 to 1"),
        (["--attention", "nan"], "--attention nan: must be from 0 to 1"),
        (["--network", "dit", "--attention", "1"], "--attention: only with --network unet"),
        (["--network", "dit", "--attention", "1", "--start", "shipped", "--minutes", "1"], "only with --network unet"),
    ],
)
def test_a_wrong_share_for_attention_is_one_line(words: list[str], problem: str, tmp_path: Path, capsys: Any) -> None:
    assert main(["train-scenes", str(tmp_path / "w"), str(tmp_path / "t"), *words]) == 2
    assert problem in capsys.readouterr().err
    assert not (tmp_path / "w").exists()
