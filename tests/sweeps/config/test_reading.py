"""Text keys stay text, in pairs and in files; any value of any key gives a configuration or one line."""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from support.tiny_runs import SMALL
from sweeps.cli.main import main
from sweeps.config.load import build, from_yaml, load, to_dict, to_yaml
from sweeps.config.schema import Config

TEXTS = ["2026_11_26", "1e3", "5e10234", "0012345", "a #1", "null", "true", "1:30", "[x]/run", "{y}", "=", "2026-11-26"]


@pytest.mark.parametrize("text", TEXTS)
def test_a_text_key_takes_the_text_of_a_pair(text: str) -> None:
    found = load("scenes", [f"output={text}", f"name={text}", f"model.revision={text}"])
    assert (found.output, found.name, found.model.revision) == (text, text, text)
    assert build(from_yaml(to_yaml(found).encode(), "config.yaml")) == found


@pytest.mark.parametrize("text", [text for text in TEXTS if text[0] not in "n[{" and "#" not in text])
def test_a_text_key_takes_the_text_of_a_file(text: str, tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(f"preset: scenes\noutput: {text}\nmodel:\n  revision: {text}\nname: '{text}'\n")
    found = load(str(file), [])
    assert (found.output, found.name, found.model.revision) == (text, text, text)


def test_lists_of_text_stay_text_too() -> None:
    found = load("scenes", ["interventions.depth_sites=[1e3, 007]", "experiments.transfer_sites=null0"])
    assert found.interventions.depth_sites == ("1e3", "007")
    assert found.experiments.transfer_sites == ["null0"]


def test_numbers_are_decimal() -> None:
    found = load("scenes", ["sampling.shard=010", "prompts.count=1e2", "probe.lr=1e-3", "sweep.seeds=[007]"])
    assert (found.sampling.shard, found.prompts.count, found.probe.lr, found.sweep.seeds) == (10, 100, 0.001, [7])


def test_a_file_stands_on_another_from_its_own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "a b#1"
    folder.mkdir()
    (folder / "base.yaml").write_text("preset: causal\nname: base\nsampling: {guidance: 3}\n")
    (folder / "mine.yaml").write_text("preset: base.yaml\nname: mine\n")
    monkeypatch.chdir(tmp_path)
    found = load("a b#1/mine.yaml", ["sampling.threads=2"])
    assert (found.name, found.sampling.guidance, found.interventions.images) == ("mine", 3.0, 40)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert load("~/a b#1/mine.yaml", []).name == "mine"


def test_a_file_that_stands_on_itself_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("preset: b.yaml\n")
    (tmp_path / "b.yaml").write_text("preset: ./a.yaml\n")
    with pytest.raises(ValueError, match=r"b.yaml: preset './a.yaml' stands on itself"):
        load(str(tmp_path / "a.yaml"), [])


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("name: x\nname: y\n", "line 1: not readable YAML: name is there twice"),
        ("name: !!python/object:os.system x\n", "line 1: not readable YAML: could not determine a constructor"),
        ("name: \x07\n", "not readable YAML: unacceptable character"),
        ("name: &a [*a]\n", "configuration: nested too deeply"),
        ("[" * 5000, "nested too deeply"),
        ("preset: [a]\n", "give the name of a preset"),
        ("preset: nowhere.yaml\n", r"mine.yaml: preset 'nowhere.yaml': no such preset or file"),
        ("name: ${oc.env:HOME}\n", r"name=\$\{oc.env:HOME\}: only another setting can be referred to"),
        ("name: ${${oc.env:HOME}:x}\n", "only another setting"),
        ("name: ${output}\noutput: ${name}\n", "configuration: "),
    ],
)
def test_a_file_with_a_mistake_is_named(text: str, reason: str, tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(text)
    with pytest.raises(ValueError, match=reason):
        load(str(tmp_path / "mine.yaml"), [])


def test_a_setting_may_refer_to_another_but_not_to_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET", "abcdefgh")
    assert load("scenes", ["output=runs/${name}/${sampling.shard}", "name=x"]).output == "runs/x/16"
    with pytest.raises(ValueError, match="no environment"):
        load("scenes", ["name=${oc.env:SECRET}"])
    # a configuration that another person has put into an output
    with pytest.raises(ValueError, match="no environment"):
        build({"name": "${oc.env:SECRET}"})


def keys(group: object, prefix: str = "") -> list[str]:
    found = []
    for item in fields(group):  # type: ignore[arg-type]
        value = getattr(group, item.name)
        path = f"{prefix}{item.name}"
        found += keys(value, f"{path}.") if is_dataclass(value) else [path]
    return found


VALUES: list[Any] = ["text", "-1", "0.5", "inf", "nan", [1, "x"], [], {"a": 1}, None, "", True, "9" * 10_000,
                     "two\nlines", "😀\x1b[31m"]  # fmt: skip


@pytest.mark.parametrize("key", keys(Config()))
def test_any_value_of_any_key_is_a_plan_or_one_line(
    key: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty.yaml").write_text("preset:\n")
    small = [pair for pair in SMALL if not pair.startswith(f"{key}=")]
    for value in VALUES:
        nested: Any = value
        for part in reversed(key.split(".")):
            nested = {part: nested}
        (tmp_path / "mine.yaml").write_text(yaml.safe_dump(nested, allow_unicode=True))
        written = value if isinstance(value, str) else json.dumps(value)
        code = main(["plan", "empty.yaml", *small, f"{key}={written}"])
        error = capsys.readouterr().err
        assert code in (0, 2), (value, error)
        if code:
            assert error.count("\n") == 1, (value, error)
            assert len(error) < 1000, value
            assert key.rpartition(".")[2] in error, (value, error)
            assert "\x1b" not in error
        with suppress(ValueError):
            load("mine.yaml", small)


def test_every_value_of_the_presets_survives_as_text() -> None:
    for preset in ("scenes", "paper", "causal"):
        made = load(preset, [])
        assert build(json.loads(json.dumps(to_dict(made)))) == made
