"""Wrong checkpoints on the command line: one line, exit code 2, no code run, nothing written."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from support.labelling_reference import Trap, thin_state, tracer_shapes
from sweeps.cli.main import main

TRACER = ["labels.saliency=tracer", "labels.saliency_weights={}"]
MIDAS = ["labels.depth=midas", "labels.depth_weights={}"]


def other_arm(path: Path) -> None:
    torch.save({f"module.{name}": value for name, value in thin_state(tracer_shapes(0)).items()}, path)


def with_code(path: Path) -> None:
    torch.save({"weight": Trap(path.with_name("ran"))}, path)


def cut_short(path: Path) -> None:
    torch.save({"weight": torch.randn(5000)}, path)
    path.write_bytes(path.read_bytes()[:9000])


def web_page(path: Path) -> None:
    path.write_text("<!DOCTYPE html><title>Not found</title>")


def other_model(path: Path) -> None:
    torch.save({"pretrained.model.patch_embed.backbone.stem.conv.weight": torch.ones(1)}, path)


def incomplete(path: Path) -> None:
    state = thin_state(tracer_shapes(5))
    del state["rfb3.branch2.1.conv.weight"]
    torch.save(state, path)


@pytest.mark.parametrize(
    ("settings", "make", "message"),
    [
        (TRACER, other_arm, "is a checkpoint of TRACER-TE0, not TE5; set labels.saliency=tracer-te0"),
        (TRACER, with_code, "which was refused and not run"),
        (TRACER, cut_short, "truncated"),
        (TRACER, web_page, "another kind of file"),
        (TRACER, incomplete, "1 tensors missing (rfb3.branch2.1.conv.weight)"),
        (TRACER, None, "no such file"),
        (TRACER[:1], None, "needs a checkpoint"),
        (MIDAS, other_model, "is a checkpoint of DPT-Hybrid, not DPT-Large"),
        (MIDAS, with_code, "which was refused and not run"),
        (MIDAS, cut_short, "truncated"),
        (MIDAS, None, "no such file"),
        (MIDAS[:1], None, "needs a checkpoint"),
        (["labels.depth=depth-anything-v2-small"], None, "depth-anything/Depth-Anything-V2-Small-hf@COMMIT"),
        ([MIDAS[0], "labels.depth_weights=Intel/dpt-large"], None, "Intel/dpt-large@COMMIT"),
        ([MIDAS[0], "labels.depth_weights=Intel/dpt-large@main"], None, "Intel/dpt-large@COMMIT"),
        (["labels.depth=midas-v9"], None, "no labeller 'midas-v9'; known: depth-anything-v2-base"),
    ],
)
def test_wrong_checkpoints_are_refused_before_any_work(tmp_path, capsys, settings, make, message):
    path = tmp_path / "weights.pth"
    if make:
        make(path)
    words = [word.format(path) for word in settings]
    assert main(["run", "scenes", *words, f"output={tmp_path / 'run'}", "ray.address=none"]) == 2
    # a slow machine also says that it is still checking
    (error,) = (line for line in capsys.readouterr().err.splitlines() if not line.startswith("checking settings"))
    assert message in error
    assert error.startswith("scenesweep run: labels.")
    assert not (tmp_path / "run").exists()
    assert not (tmp_path / "ran").exists()
