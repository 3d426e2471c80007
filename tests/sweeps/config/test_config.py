"""Configuration: composed, checked, hashed; wrong input is one clear line."""

from __future__ import annotations

from dataclasses import replace

import pytest

from sweeps.cli.main import parse
from sweeps.config.hashing import hashes
from sweeps.config.load import build, load, presets, to_dict, to_yaml
from sweeps.config.schema import Config


def test_the_preset_makes_the_papers_grid():
    from sweeps.runtime.grid import pack, probe_specs
    from sweeps.runtime.run import model_info

    made = load("scenes", [])
    grid = [c for c in probe_specs(made.sweep, made.sampling.variants, model_info(made).sites) if c.control == "none"]
    assert len(grid) == 960
    assert len(pack(grid, ["variant", "block"])) == 14
    assert len(pack(grid, ["variant", "site"])) == 32
    assert len(pack(grid, ["variant", "site", "step"])) == 480
    assert len(pack(grid, ["variant", "site", "step", "task"])) == 960


@pytest.mark.parametrize(
    ("axes", "name"),
    [
        (["variant", "block"], "probe-trained-up.1-saliency+depth-steps01-15"),
        (["variant", "site", "task"], "probe-trained-up.1.0-depth-steps01-15"),
        (["variant", "site", "step", "task"], "probe-random-up.3.2-depth-step07"),
        (["step"], "probe-trained+random-16sites-saliency+depth-step03"),
        ([], "probe-trained+random-16sites-saliency+depth-steps01-15"),
    ],
)
def test_trials_are_named_by_what_they_fit(axes, name):
    from sweeps.runtime.grid import pack, probe_specs
    from sweeps.runtime.run import model_info

    made = load("scenes", [])
    grid = probe_specs(made.sweep, made.sampling.variants, model_info(made).sites)
    names = [trial.name for trial in pack(grid, axes)]
    assert name in names
    assert len(set(names)) == len(names)
    assert not {c for text in names for c in text} & set("/ :*?")
    beside = {trial.name for trial in pack([replace(probe, experiment="smoothness") for probe in grid], axes)}
    assert not beside & set(names)
    assert name.replace("probe-", "probe-smoothness-") in beside


@pytest.mark.parametrize("preset", sorted(presets()))
def test_every_preset_loads_and_survives_a_round_trip(preset, tmp_path):
    made = load(preset, [])
    path = tmp_path / "again.yaml"
    path.write_text(to_yaml(made))
    assert load(str(path), []) == made


def test_an_output_whose_settings_are_no_keys_is_refused_in_one_line(tmp_path):
    import storage
    from sweeps.runtime.run import stored_config

    layout = storage.Layout(1, 1, ("trained",), (storage.SiteShape("mid.0", 1, 1),), image=(8, 8), latent=())
    store = storage.Store.create(str(tmp_path), layout)
    store.put("config.yaml", b"- model\n- sweep\n")
    with pytest.raises(ValueError, match=r"config\.yaml holds no keys"):
        stored_config(str(tmp_path))


def test_pairs_override_the_preset():
    made = load("scenes", ["sampling.shard=4", "sweep.steps=[1,15]", "probe.bias=true", "name=x"])
    assert (made.sampling.shard, made.sweep.steps, made.probe.bias, made.name) == (4, [1, 15], True, "x")


def test_values_take_the_types_of_their_settings():
    pairs = ["sampling.shard=4.0", "probe.lr=1", "sweep.steps=3", "interventions.depth_sites=mid.0", "name=7"]
    made = load("paper", [*pairs, "prompts.test=", "interventions.guidance=2"])
    values = (made.sampling.shard, made.probe.lr, made.sweep.steps, made.interventions.depth_sites, made.name)
    assert values == (4, 1.0, [3], ("mid.0",), "7")
    assert [type(value) for value in values] == [int, float, list, tuple, str]
    assert (made.prompts.test, made.interventions.guidance) == ("", 2.0)
    assert load("scenes", ["interventions.guidance=null"]).interventions.guidance is None


def test_settings_of_older_runs_are_ignored():
    older = to_dict(Config()) | {"sweep": {"steps": [1], "experiment": "grid"}, "gone": {"x": 1}}
    assert build(older).sweep.steps == [1]


@pytest.mark.parametrize(
    ("preset", "pairs", "message"),
    [
        ("scnes", [], r"preset 'scnes': no such preset or file; did you mean 'scenes'"),
        ("scenes", ["smapling.shard=4"], r"smapling: unknown key; did you mean 'sampling'"),
        ("scenes", ["sampling.shrad=4"], r"sampling.shrad: unknown key; did you mean 'sampling.shard'"),
        ("scenes", ["sampling.shard=many"], r"sampling.shard=many: needs a whole number"),
        ("scenes", ["sampling.shard=1.5"], r"sampling.shard=1.5"),
        ("scenes", ["sampling.shard=0"], r"sampling.shard=0: must be 1 or more"),
        ("scenes", ["sampling.shard=true"], r"sampling.shard=true"),
        ("scenes", ["sweep.steps=[1,x]"], r"sweep.steps\[1\]=x"),
        ("scenes", ["sweep.steps={a: 1}"], r"sweep.steps=.*'a': '1'.*: needs a value, not keys"),
        ("scenes", ["sweep.experiment=other"], r"sweep.experiment: unknown key"),
        ("scenes", ["curation.salt=other"], r"curation.salt: unknown key"),
        ("scenes", ["sampling=4"], r"sampling=4: a group of keys"),
        ("scenes", ["sampling.variants=[trained,rndom]"], r"'rndom': unknown; did you mean 'random'"),
        ("scenes", ["sampling.variants=[random]"], r"sampling.variants: add trained"),
        ("scenes", ["sampling.variants=[trained,rndom@7]"], r"'rndom': unknown; did you mean 'random'"),
        ("scenes", ["sampling.variants=[trained,random,random@x]"], r"'random@x': what follows the @ must be a seed"),
        ("scenes", ["sampling.variants=[trained,random,random@07]"], r"'random@07': what follows the @ must be a seed"),
        ("scenes", ["sampling.variants=[trained,random,trained@7]"], r"'trained@7': only random, reinit"),
        ("scenes", ["sampling.variants=[trained,random@7]"], r"'random@7': add random"),
        ("scenes", ["sampling.variants=[trained,random,random@100]"], r"'random@100': the same as random;"),
        ("scenes", ["sweep.steps=[0]"], r"sweep.steps=0: steps are 1 to 15"),
        ("scenes", ["sweep.steps=[16]"], r"sweep.steps=16: steps are 1 to 15"),
        ("scenes", ["sweep.tasks=[depht]"], r"'depht': unknown; did you mean 'depth'"),
        ("scenes", ["sweep.controls=[shufled]"], r"'shufled': unknown; did you mean 'shuffled'"),
        ("scenes", ["sweep.trial_axes=[sites]"], r"'sites': unknown; did you mean 'site'"),
        ("scenes", ["probe.lr=-1"], r"probe.lr must be a positive number"),
        ("scenes", ["probe.bias=1"], r"probe.bias=1: needs true or false"),
        ("scenes", ["interventions.iterations=-1"], r"interventions.iterations=-1"),
        ("scenes", ["interventions.guidances=[3,0]"], r"interventions.guidances=0.0"),
        ("scenes", ["tracking.mode=onlin"], r"tracking.mode='onlin': unknown; did you mean 'online'"),
        ("scenes", ["just-a-word"], r"write key=value"),
        ("scenes", ["curation.val=0"], r"probe.selection=val: needs .* curation.val=0 .* set probe.selection=last"),
        ("paper", ["probe.selection=val"], r"selection=val: needs .* prompts.test=test_split.* probe.selection=last"),
    ],
)
def test_wrong_input_names_key_value_and_fix(preset, pairs, message):
    with pytest.raises(ValueError, match=message):
        load(preset, pairs)


def test_broken_yaml_is_named(tmp_path):
    path = tmp_path / "broken.yaml"
    path.write_text("name: x\nsweep: [1\n")
    with pytest.raises(ValueError, match=r"broken.yaml line 3: not readable YAML: expected"):
        load(str(path), [])
    path.write_text("- 1\n")
    with pytest.raises(ValueError, match=r"holds no keys"):
        load(str(path), [])


def changed(*pairs: str) -> list[str]:
    """Stages whose hash the pairs change."""
    before, after = (vars(hashes(load("scenes", list(p)), "r")) for p in ((), pairs))
    return [stage for stage in before if before[stage] != after[stage]]


ALL = ["sample", "label", "curate", "probe", "intervene"]


@pytest.mark.parametrize(
    ("pair", "stages"),
    [
        ("sampling.guidance=5.5", ALL),
        ("sampling.threads=2", ALL),
        ("sampling.sites=[attention,residual]", ALL),
        ("sampling.sites=[attention]", []),
        ("prompts.count=9", ALL),
        ("labels.threshold=9", ALL[1:]),
        ("curation.train=9", ALL[2:]),
        ("probe.lr=0.5", ALL[3:]),
        ("interventions.iterations=9", ALL[4:]),
        ("interventions.moves=3", ALL[4:]),
        # another dose must not stand beside the former one as if both were the main edit
        ("interventions.saliency_gain=0.7", ALL[4:]),
        ("interventions.depth_gain=0.7", ALL[4:]),
        ("interventions.scale=gap", ALL[4:]),
        ("interventions.saliency_gain=2", []),
        ("interventions.depth_scale=label", ALL[4:]),
        ("interventions.directions=[pattern]", []),
        ("interventions.gains=[0.5,2]", []),
        ("interventions.images=9", []),
        ("interventions.step_counts=[1,2]", []),
        ("interventions.guidances=[1,3]", []),
        ("tracking.mode=disabled", []),
        ("ray.sampling_actors=3", []),
        ("ray.address=auto", []),
        ("sweep.trial_axes=[variant]", []),
        ("sampling.retries=5", []),
        ("model.device=cpu", []),
        ("output=elsewhere", []),
    ],
)
def test_a_change_redoes_its_stage_and_the_later_ones(pair, stages):
    assert changed(pair) == stages


def test_other_weights_change_every_hash():
    one, two = (vars(hashes(Config(), revision)) for revision in ("a", "b"))
    assert all(one[stage] != two[stage] for stage in one)


def test_every_field_has_a_docstring():
    """A docstring follows every field of every configuration class."""
    import ast
    import inspect

    for owner in {type(v) for v in vars(Config()).values() if hasattr(v, "__dataclass_fields__")}:
        body = ast.parse(inspect.getsource(owner)).body[0].body
        for field, after in zip(body, [*body[1:], None], strict=True):
            if isinstance(field, ast.AnnAssign):
                assert isinstance(after, ast.Expr), f"{owner.__name__}.{field.target.id} has no docstring"


def test_dictionaries_are_plain():
    import json

    assert json.loads(json.dumps(to_dict(Config()))) == to_dict(Config())


@pytest.mark.parametrize(
    "line",
    [
        "plan paper sampling.shard=4 --rate 2",
        "plan paper --rate 2 sampling.shard=4",
        "plan --rate 2 paper sampling.shard=4",
    ],
)
def test_preset_and_pairs_may_stand_before_or_after_options(line):
    parsed = parse(line.split())
    assert (parsed.preset, parsed.overrides, parsed.rate) == ("paper", ["sampling.shard=4"], 2.0)


@pytest.mark.parametrize("line", ["plan paper --rate 2 scenes", "plan paper --rate 2 --nonsense=1", "status a b=c"])
def test_unknown_arguments_are_refused(line):
    with pytest.raises(SystemExit, match="2"):
        parse(line.split())
