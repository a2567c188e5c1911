"""What `albat init` writes, and the schema that editors check configurations by."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator

from flows.config import load_config
from flows.starting import SCHEMA, schema
from tests.flows.conftest import Albat

ROOT = Path(__file__).parent.parent.parent
LEAST: dict[str, Any] = {
    "backbone": {"path": "model"},
    "corpus": {"path": "corpus/*.jsonl"},
    "adaptation": [{"path": "own.jsonl"}],
}


@pytest.fixture(scope="module")
def validator() -> Draft202012Validator:
    Draft202012Validator.check_schema(schema())
    return Draft202012Validator(schema())


@pytest.mark.parametrize("options", [(), ("--minimal",), ("--image",), ("--minimal", "--image")])
def test_init_writes_what_can_be_loaded_and_an_editor_accepts(
    albat: Albat, tmp_path: Path, options: tuple[str, ...]
) -> None:
    path = tmp_path / "mine.yaml"
    assert albat("init", path, *options).code == 0
    config = load_config(str(path))
    assert (config.backbone.kind == "diffusion") == ("--image" in options)
    assert (len(path.read_text().splitlines()) < 25) == ("--minimal" in options)
    first = path.read_text().splitlines()[0]
    assert first == f"# yaml-language-server: $schema={SCHEMA}"
    written = json.loads((tmp_path / SCHEMA).read_text())
    assert list(Draft202012Validator(written).iter_errors(yaml.safe_load(path.read_text()))) == []


@pytest.mark.parametrize(
    "path", ["text/demo.yaml", "image/demo.yaml", "subject/subject.yaml"], ids=str
)
def test_the_shipped_configurations_fit_the_schema(
    path: str, validator: Draft202012Validator
) -> None:
    values = yaml.safe_load((ROOT / "examples" / path).read_text())
    assert [e.message for e in validator.iter_errors(values)] == []


@pytest.mark.parametrize(
    ("changes", "sound"),
    [
        ({}, True),
        ({"split": None}, True),
        ({"corpus": [{"path": ["a", "b"]}]}, True),
        ({"backbone": {"path": "model", "revision": None}}, True),
        ({"mixture": {"alpha": "auto"}}, True),
        ({"mixture": {"alpha": 0.3}}, True),
        ({"mixture": {"alpha": "often"}}, False),
        ({"scoring": {"scorer": {"name": "length_of_all"}}}, False),
        ({"scoring": {"scorer": "random"}}, True),
        ({"scoring": {"scorer": {"name": "gradient", "dimension": 64}}}, True),
        (
            {"corpus": {"path": "c", "filters": ["c4", {"name": "fineweb", "language": "deu"}]}},
            True,
        ),
        ({"corpus": {"path": "c", "filters": None}}, True),
        ({"corpus": {"path": "c", "filters": ["gopher"]}}, False),
        ({"corpus": {"path": "c", "filters": [{"min_doc_words": 5}]}}, False),
        ({"seed": None}, False),
        ({"seed": -1}, False),
        ({"sede": 1}, False),
        ({"finetune": {"step": 3}}, False),
        ({"backbone": {"kind": "dog", "path": "model"}}, False),
        ({"backbone": {}}, False),
        ({"name": "with spaces"}, False),
    ],
)
def test_the_schema_takes_what_the_command_takes(
    tmp_path: Path, validator: Draft202012Validator, changes: dict[str, Any], sound: bool
) -> None:
    values = LEAST | changes
    assert validator.is_valid(values) == sound
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(values))
    try:
        load_config(str(path))
    except Exception:
        assert not sound
    else:
        assert sound


def test_a_demo_without_its_data_says_what_to_install(
    albat: Albat, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("flows.starting._EXAMPLES", tmp_path)
    said = albat("demo")
    assert said.code == 1
    assert "pip install 'albat[demo]'" in said.err
