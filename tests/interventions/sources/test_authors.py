"""The authors' probes: file names, and what is read from the files."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from interventions.sources.authors import AuthorsProbes
from interventions.sources.base import ProbeKey


def test_the_authors_probes_are_found_by_their_names(tmp_path: Path):
    probes = AuthorsProbes(tmp_path, depth_suffix="_x")
    assert probes.path(ProbeKey("saliency", "up.2.1", 5)).relative_to(tmp_path) == Path(
        "large_syn_dataset/at_step_4/segmentation_probe_up_2_attn1_out_1.pth"
    )
    assert probes.path(ProbeKey("depth", "mid.0", 1)).relative_to(tmp_path) == Path(
        "large_syn_dataset_continuous/at_step_0/regression_probe_mid_0_attn1_out_0_x.pth"
    )


def test_the_authors_probes_are_read_without_running_code(tmp_path: Path):
    probes, key = AuthorsProbes(tmp_path), ProbeKey("depth", "up.1.0", 3)
    path = probes.path(key)
    path.parent.mkdir(parents=True)
    weight, bias = torch.ones(1, 4), torch.full((1,), 2.0)
    torch.save({"dense1.weight": weight}, path)
    assert probes(key).tolist() == [[1, 1, 1, 1]]
    torch.save({"dense1.weight": weight, "dense1.bias": bias}, path)
    assert probes(key).tolist() == [[1, 1, 1, 1, 2]]
    torch.save({"dense1.weight": weight, "dense2.weight": weight}, path)
    with pytest.raises(ValueError, match="dense2"):
        probes(key)
    torch.save(Path("x"), path)
    with pytest.raises(ValueError, match="no readable probe"):
        probes(key)
    with pytest.raises(ValueError, match="no readable probe"):
        probes(ProbeKey("depth", "up.1.0", 4))
    with pytest.raises(ValueError, match="variant random"):
        probes(ProbeKey("depth", "up.1.0", 3, "random"))
