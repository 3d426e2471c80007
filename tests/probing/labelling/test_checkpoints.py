"""Foreign checkpoints: what is read and what is refused."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from probing.labelling import checkpoints
from probing.labelling.checkpoints import Source
from support.labelling_reference import Trap

STATE = {"weight": torch.arange(6.0).reshape(2, 3), "bias": torch.tensor([1.0, -1.0])}


def source(path: Path | str) -> Source:
    return Source("labels.saliency_weights", str(path), "https://example.org/official.pth")


def refusal(path: Path | str) -> str:
    """The error message for a file."""
    with pytest.raises(ValueError, match="labels.saliency_weights") as caught:
        checkpoints.read(source(path))
    line = str(caught.value)
    assert "\n" not in line
    assert len(line) < 400
    assert "https://example.org/official.pth" in line
    return line


@pytest.mark.parametrize("old", [True, False])
@pytest.mark.parametrize("wrap", [lambda s: s, lambda s: {"model": s, "optimizer": {}}, lambda s: {"state_dict": s}])
def test_reads_state_dicts_in_every_usual_wrapping(tmp_path, old, wrap):
    path = tmp_path / "w.pth"
    named = {f"module.{name}": value.half() for name, value in STATE.items()}
    torch.save(wrap(named), path, _use_new_zipfile_serialization=not old)
    state = checkpoints.read(source(path))
    assert state.keys() == STATE.keys()
    for name, value in STATE.items():
        assert state[name].dtype == torch.float32
        assert torch.equal(state[name], value)


def test_reads_safetensors_and_keeps_a_prefix_that_not_all_have(tmp_path):
    save_file({"module.weight": STATE["weight"], "bias": STATE["bias"]}, tmp_path / "w.safetensors")
    assert checkpoints.read(source(tmp_path / "w.safetensors")).keys() == {"module.weight", "bias"}


@pytest.mark.parametrize("old", [True, False])
@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9, 0.999])
def test_truncated_pickle_is_one_clear_line(tmp_path, old, share):
    path = tmp_path / "w.pth"
    torch.save({"weight": torch.randn(500)}, path, _use_new_zipfile_serialization=not old)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    assert "truncated" in refusal(path)


def test_truncated_safetensors_and_other_files(tmp_path):
    save_file(STATE, tmp_path / "w.safetensors")
    data = (tmp_path / "w.safetensors").read_bytes()
    (tmp_path / "w.safetensors").write_bytes(data[:-5])
    assert "truncated" in refusal(tmp_path / "w.safetensors")
    (tmp_path / "page.pth").write_text("<!DOCTYPE html><title>Not found</title>")
    assert "another kind of file" in refusal(tmp_path / "page.pth")


@pytest.mark.parametrize("form", ["zip", "old", "bare"])
def test_code_in_a_pickle_is_refused_and_not_run(tmp_path, form):
    path, sign = tmp_path / "w.pth", tmp_path / "ran"
    if form == "bare":
        path.write_bytes(pickle.dumps({"weight": Trap(sign)}, protocol=2))
    else:
        torch.save({"weight": Trap(sign)}, path, _use_new_zipfile_serialization=form == "zip")
    assert "not run" in refusal(path)
    assert not sign.exists()
    with path.open("rb") as file:  # the trap works where pickles are run
        pickle.load(file) if form == "bare" else torch.load(file, weights_only=False)
    assert sign.exists()


def test_whole_module_is_refused(tmp_path):
    torch.save(nn.Linear(2, 2), tmp_path / "w.pth")
    assert "torch.nn.modules.linear.Linear" in refusal(tmp_path / "w.pth")


def test_files_that_are_missing_or_no_state_dict(tmp_path):
    torch.save([STATE["bias"]], tmp_path / "list.pth")
    assert "a list" in refusal(tmp_path / "list.pth")
    torch.save({"weight": STATE["weight"], "epoch": 3}, tmp_path / "mixed.pth")
    assert "'epoch'" in refusal(tmp_path / "mixed.pth")
    assert "no such file" in refusal(tmp_path / "none.pth")
    assert "no such file" in refusal(tmp_path)
    assert "not set" in refusal("")


def fill(state: dict[str, torch.Tensor]) -> nn.Linear:
    with torch.device("meta"):
        network = nn.Linear(3, 2)
    checkpoints.fill(network, state, source("w.pth"))
    return network


def test_fill_is_strict():
    network = fill(STATE)
    assert torch.equal(network(torch.ones(1, 3)), torch.tensor([[4.0, 11.0]]))
    for state, fault in (
        ({"weight": STATE["weight"]}, "1 tensors missing (bias)"),
        (STATE | {"extra": torch.ones(1)}, "1 tensors unknown (extra)"),
        (STATE | {"bias": torch.ones(3)}, "1 tensors of another shape (bias)"),
        (STATE | {"weight": torch.full((2, 3), torch.nan)}, "1 tensors not finite (weight)"),
    ):
        with pytest.raises(ValueError, match="does not fit") as caught:
            fill(state)
        assert fault in str(caught.value)
        assert "\n" not in str(caught.value)


def test_digest_equals_sha256sum_for_one_file_and_depends_on_every_byte(tmp_path):
    (tmp_path / "a").write_bytes(b"abc")
    (tmp_path / "b").write_bytes(b"abd")
    assert checkpoints.digest([tmp_path / "a"]) == "sha256:ba7816bf8f01cfea"
    both = checkpoints.digest([tmp_path / "a", tmp_path / "b"])
    assert both != checkpoints.digest([tmp_path / "b", tmp_path / "a"])
