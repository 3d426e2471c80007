"""The whole pipeline, from prompts to report, on a narrow model of each family of transformers."""

from __future__ import annotations

import pytest

import storage
from support import tiny_families
from sweeps.cli.main import main

STEPS = 3


@pytest.mark.slow
@pytest.mark.parametrize("name", tiny_families.TRANSFORMERS)
def test_a_family_runs_from_prompts_to_report(name, tmp_path, capsys):
    folder = tiny_families.save(name, tmp_path / "model")
    texts = tiny_families.CLASSES if name == "DiT" else [f"a {label}" for label in tiny_families.CLASSES]
    (tmp_path / "prompts.txt").write_text("\n".join(texts))
    words = [
        "run", "scenes", f"output={tmp_path / 'run'}", f"model.name={folder}", "model.size=128", "model.device=cpu",
        f"prompts.source={tmp_path / 'prompts.txt'}", "prompts.count=8", "sampling.scheduler=own",
        f"sampling.steps={STEPS}", "sampling.shard=4", "curation.train=4", "curation.val=2", "curation.test=2",
        "curation.min_foreground=0", "curation.min_contrast=0", "sweep.controls=[none]", "probe.epochs=2",
        "experiments.names=[vae,emergence]", "experiments.vae_steps=[-1]", "experiments.emergence_steps=[1,-1]",
        "interventions.images=1", "interventions.saliency_steps=[1]", "interventions.depth_steps=[1]",
        "interventions.iterations=8", "tracking.mode=disabled", "ray.address=none", "sweep.control_sites=[]",
    ]  # fmt: skip
    steps = [1, 3] if name == "PixArt" else [1, 2, 3]
    if name == "PixArt":
        words += [f"sampling.recorded_steps={steps}", "sampling.sites=[cross,block.0.self,residual]"]
        words += ["interventions.saliency_sites=[block.0.self,late]", "interventions.depth_sites=[all]"]
    if name == "DiT":
        words[words.index("experiments.names=[vae,emergence]")] = "experiments.names=[transfer,converged,smoothness]"
        words += ["experiments.transfer_sites=[blocks]", "experiments.converged_sites=[attention]"]
    if name == "Sana":  # its autoencoder has no self-attention in a middle block
        words[words.index("experiments.names=[vae,emergence]")] = "experiments.names=[emergence]"
    assert main(words) == 0, capsys.readouterr().err
    store = storage.open(str(tmp_path / "run"))
    assert store.layout.steps == STEPS
    log_snrs = store.layout.log_snrs
    assert len(log_snrs) == STEPS
    assert list(log_snrs) == sorted(log_snrs)
    rows = [row for row in store.table("probes").to_pylist() if row["experiment"] == "grid"]
    assert {row["status"] for row in rows} == {"done"}
    assert {row["step"] for row in rows} == set(store.layout.recorded_steps) == set(steps)
    assert {row["site"] for row in rows} == {site.name for site in store.layout.sites}
    assert {row["variant"] for row in rows} == {"trained", "random"}
    if name == "PixArt":
        sites = {f"block.{i}.{kind}" for i in range(3) for kind in ("cross", "residual")}
        assert {row["site"] for row in rows} == {"block.0.self", *sites}
    if name == "DiT":
        beside = [row for row in store.table("probes").to_pylist() if row["experiment"] != "grid"]
        assert {row["experiment"] for row in beside} == {"transfer", "converged", "smoothness"}
        assert {row["status"] for row in beside} == {"done"}
        assert {row["site"] for row in beside} == {site.name for site in store.layout.sites}
    edits = store.table("interventions").to_pylist()
    assert {row["status"] for row in edits} <= {"done", "skipped"}
    assert {row["task"] for row in edits} >= {"depth"}
    if name == "PixArt":
        assert {row["sites"] for row in edits if row["task"] == "depth"} == {",".join(
            f"block.{i}.{kind}" for i in range(3) for kind in ("cross", "residual")
        )}  # fmt: skip
    page = store.get("report/index.html").decode()
    assert store.layout.sites[0].name in page
    capsys.readouterr()
    assert main(["run", *words[1:]]) == 0
    assert "nothing to do" in capsys.readouterr().out
    assert main(["verify", str(tmp_path / "run")]) == 0
