"""The configuration file: what is taken, what is refused, and how mistakes are told."""

import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import BaseModel

from albat_core.benchmark.config import EfficacyConfig
from albat_core.errors import ConfigError
from albat_core.runs.config import RunConfig
from albat_core.store import storage
from flows.config import load_config, load_efficacy, starter_config

EXAMPLES = Path(__file__).parents[2] / "examples"
LEAST = {"backbone": {"path": "b"}, "corpus": {"path": "c"}, "adaptation": {"path": "a"}}


def write(folder: Path, content: str | dict[str, Any]) -> str:
    path = folder / "run.yaml"
    path.write_text(content if isinstance(content, str) else yaml.safe_dump(content))
    return str(path)


def mistakes(folder: Path, content: str | dict[str, Any], **overrides: Any) -> list[str]:
    """Return the lines that name mistakes, after checking that the head counts them."""
    path = write(folder, content)
    with pytest.raises(ConfigError) as caught:
        load_config(path, overrides)
    assert caught.value.where == path
    assert caught.value.remedy
    head, *lines = caught.value.message.splitlines()
    assert head == f"{len(lines)} mistake{'s' if len(lines) > 1 else ''}:"
    return [line.strip() for line in lines]


def models(root: type[BaseModel] = RunConfig) -> Iterator[tuple[str, type[BaseModel]]]:
    """Yield every model that a configuration can hold, by where it stands."""

    def inside(annotation: Any) -> Iterator[type[BaseModel]]:
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            yield annotation
        for part in getattr(annotation, "__args__", ()):
            yield from inside(part)

    yield "", root
    for name, field in root.model_fields.items():
        for model in inside(field.annotation):
            yield from ((f"{name}.{place}", inner) for place, inner in models(model))


def test_every_field_is_described_and_every_model_refuses_unknown_keys() -> None:
    found = list(models())
    assert {"", "backbone.", "corpus.", "finetune.adapter.", "runtime."} <= {p for p, _ in found}
    for place, model in found:
        assert model.model_config.get("extra") == "forbid", place
        assert model.model_config.get("frozen"), place
        for name, field in model.model_fields.items():
            assert field.description and field.description.strip()[-1] in ".", f"{place}{name}"


@pytest.mark.parametrize(
    ("change", "unknown", "meant"),
    [
        ({"sed": 1}, "sed", "seed"),
        ({"backbone": {"path": "b", "maxlength": 64}}, "backbone.maxlength", "max_length"),
        ({"corpus": {"path": "c", "textcolumn": "t"}}, "corpus.textcolumn", "text_column"),
        (
            {"corpus": [{"path": "c"}, {"path": "d", "id_colum": "i"}]},
            "corpus.1.id_colum",
            "id_column",
        ),
        ({"finetune": {"learningrate": 1}}, "finetune.learningrate", "learning_rate"),
        ({"finetune": {"adapter": {"rang": 4}}}, "finetune.adapter.rang", "rank"),
        ({"runtime": {"rot": "x"}}, "runtime.rot", "root"),
    ],
)
def test_unknown_key_is_refused_with_line_and_nearest_name(
    tmp_path: Path, change: dict[str, Any], unknown: str, meant: str
) -> None:
    (said,) = mistakes(tmp_path, LEAST | change)
    lines = (tmp_path / "run.yaml").read_text().splitlines()
    line = 1 + next(n for n, text in enumerate(lines) if f"{unknown.rpartition('.')[2]}:" in text)
    assert said == f"line {line}: unknown key {unknown!r}; did you mean {meant!r}?"


def test_unknown_key_that_is_near_nothing_gets_all_names(tmp_path: Path) -> None:
    (said,) = mistakes(tmp_path, LEAST | {"split": {"zzzz": 1}})
    assert said.endswith("unknown key 'split.zzzz'; known here: test, folds, use")


def test_all_mistakes_are_told_at_once_in_order_of_their_lines(tmp_path: Path) -> None:
    content = """\
name: "a b"
seed: -1
backbone: {path: b, max_length: long}
corpus:
  - {path: c, share: 2}
  - {pth: d}
mixture: {alpha: 1.0}
finetune:
  adapter:
    rank: 0
runtime: {device: tpu}
"""
    said = mistakes(tmp_path, content)
    assert [line.split(":")[0] for line in said] == [
        f"line {n}" for n in (1, 1, 2, 3, 5, 6, 6, 7, 10, 11)
    ]
    text = "\n".join(said)
    for expected in (
        "line 1: 'adaptation' is missing; The few examples",
        "line 1: 'name': expected other letters",
        "line 2: 'seed': input should be greater than or equal to 0, got -1",
        "line 3: 'backbone.max_length': input should be a valid integer",
        "got 'long'",
        "line 5: 'corpus.0.share': input should be less than or equal to 1, got 2",
        "line 6: 'corpus.1.path' is missing; Files, folders or globs",
        "line 6: unknown key 'corpus.1.pth'; did you mean 'path'?",
        "line 7: 'mixture.alpha': input should be less than 1, got 1.0",
        "line 10: 'finetune.adapter.rank': input should be greater than or equal to 1, got 0",
        "line 11: 'runtime.device': input should be 'auto', 'cpu' or 'cuda', got 'tpu'",
    ):
        assert expected in text


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"corpus": {"path": 5}}, "'corpus.path': "),  # one mistake, not one for each branch
        ({"corpus": []}, "'corpus': "),
        ({"corpus": {"path": " "}}, "'corpus': path names nothing"),
        (
            {"samples": {"heldout": 4}},
            "'samples': expected no heldout: pictures are looked at, and this kind of",
        ),
        ({"baselines": "random"}, "'baselines': expected a list, got 'random'; write [random]"),
        ({"seed": [1]}, "got [1]"),
        ({"scoring": {"scorer": "nearestt"}}, "got 'nearestt'; did you mean 'nearest'?"),
        ({"corpus": 3}, "'corpus': expected a list, got 3; write [3]"),
        ({"split": {"folds": 1}}, "'split.folds': input should be greater than or equal to 2"),
        ({"split": {"test": True, "folds": [3]}}, "'split.folds': input should be a valid integer"),
        ({"finetune": 3}, "'finetune': expected settings of its own, below it, got 3"),
        ({"finetune": {"learning_rate": float("nan")}}, "'finetune.learning_rate': "),
        ({"finetune": {"learning_rate": float("inf")}}, "should be a finite number"),
        (
            {"baselines": ["randon"]},
            "'baselines.0': input should be 'adaptation_only', 'random', 'generated' or 'all_data'",
        ),
        (
            {"retrieval": {"pool": "corpus"}},
            "'selection': with retrieval.pool corpus there are no turns",
        ),
        (
            {"retrieval": {"pool": "corpus"}, "scoring": {"scorer": "nearest"}},
            "'scoring': the scorer nearest needs retrieval.pool neighbours",
        ),
        (
            {"selection": {"weigh": "proportional"}},
            "'selection': weigh proportional needs the scorer matching",
        ),
        ({"proxy": {"enabled": True}}, "'proxy': the corpus is compared with rows"),
        ({"name": "../run"}, "'name': expected other letters, got '../run' (they match "),
        ({"backbone": {"path": ""}}, "'backbone.path': string should have at least 1 character"),
        ({"output": ""}, "'output': string should have at least 1 character"),
        ({1: 2}, "'1'"),
    ],
)
def test_wrong_types_and_bounds(tmp_path: Path, change: dict[str, Any], expected: str) -> None:
    said = mistakes(tmp_path, LEAST | change)
    assert [expected in line for line in said].count(True) == 1


def test_a_mistake_between_sections_is_told_where_one_is_written(tmp_path: Path) -> None:
    content = yaml.safe_dump(LEAST, sort_keys=False) + "retrieval:\n  pool: corpus\n"
    (said,) = mistakes(tmp_path, content)
    assert said.startswith(
        f"line {content.count(chr(10))}: 'selection': with retrieval.pool corpus"
    )


def test_mistakes_of_a_source_are_told_with_it(tmp_path: Path) -> None:
    source = {"path": "c", "format": "csv", "text_column": "t", "template": "no column"}
    (said,) = mistakes(tmp_path, LEAST | {"corpus": [{"path": "d"}, source]})
    assert "'corpus.1': text_column and template exclude each other" in said
    assert "'no column' names no column" in said


def test_a_key_said_twice_is_refused(tmp_path: Path) -> None:
    content = yaml.safe_dump(LEAST) + "seed: 1\nsplit:\n  folds: 3\n  folds: 4\nseed: 2\n"
    last = content.count("\n")
    assert mistakes(tmp_path, content) == [
        f"line {last - 1}: 'split.folds' is there already, in line {last - 2}",
        f"line {last}: 'seed' is there already, in line {last - 4}",
    ]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("name: no", "'name': input should be a valid string, got False; write it in quotes"),
        ("name: 2024", "got 2024; write it in quotes"),
        ("name: 2024-05-01", "write it in quotes"),
        (f"name: {'x' * 101}", "at most 100 characters"),
        ("selection:\n  rows:20", "got 'rows:20'; write a space behind the colon"),
        ("selection:\n  rows: 010", "line 2: 'selection.rows': YAML reads 010 to another base"),
        ("selection:\n  rows: 1:30", "YAML reads 1:30 to another base"),
        ("selection:\n\trows: 20", "with spaces: YAML takes no tabs"),
        ('output: "C:\\data"', "in single quotes"),
    ],
)
def test_what_yaml_reads_otherwise_than_meant_is_told(tmp_path: Path, line: str, said: str) -> None:
    assert yaml.safe_load("010") == 8 and yaml.safe_load("1:30") == 90  # as taken before
    path = tmp_path / "run.yaml"
    rest = "backbone: {path: b}\ncorpus: {path: c}\nadaptation: {path: a}\n"
    path.write_text(f"{line}\n{rest}")
    with pytest.raises(ConfigError) as caught:
        load_config(str(path))
    assert said in str(caught.value)


def test_variables_of_the_environment_stand_for_their_values(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DATA", str(tmp_path / "data"))
    monkeypatch.delenv("NOWHERE", raising=False)
    path = tmp_path / "run.yaml"
    inputs = {
        "backbone": {"path": "$DATA/model"},
        "corpus": {"path": "${DATA}/*.jsonl"},
        "adaptation": {"path": "price$.jsonl"},
    }
    settings = {"output": "$DATA/runs", "runtime": {"root": "${DATA}/made"}, **inputs}
    path.write_text(yaml.safe_dump(settings))
    config = load_config(str(path))
    data = tmp_path / "data"
    assert config.corpus[0].path == os.path.expandvars("$DATA/*.jsonl") == f"{data}/*.jsonl"
    assert config.adaptation[0].path == f"{tmp_path}/price$.jsonl"
    assert (config.backbone.path, config.output) == (f"{data}/model", f"{data}/runs")
    assert config.runtime.root == f"{data}/made"
    path.write_text(yaml.safe_dump({**settings, "output": "$NOWHERE/runs"}))
    with pytest.raises(ConfigError, match=r"expected variables that are set, got \$NOWHERE"):
        load_config(str(path))


def test_missing_sections_are_described(tmp_path: Path) -> None:
    said = mistakes(tmp_path, "seed: 3\nbackbone:\n")
    corpus = said.pop(1)
    assert corpus.startswith("line 1: 'corpus': name at least one source, or generated.prompts")
    assert [line.split(" is missing; ")[0] for line in said] == [
        "line 1: 'adaptation'",
        "line 2: 'backbone'",  # there, with nothing in it
    ]
    assert all(len(line.split(" is missing; ")[1]) > 10 for line in said)


LAUGHS = "".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9) if n else 'ha'}]\n" for n in range(12)
)
"""A few lines that stand for 9^11 entries."""


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", "expected keys and values"),
        (b"- a\n", "expected keys and values"),
        (b"a: [1\n", "expected YAML"),
        (b"a: 2020-99-99\n", "expected YAML"),
        (b"a: !!python/object:os.system x\n", "expected YAML"),
        (b"a: " + b"[" * 5000 + b"]" * 5000 + b"\n", "expected YAML"),
        (b"a: &a [*a]\n", "holds an alias of itself"),
        (LAUGHS.encode(), "entries with its aliases, over 100,000"),
        (b"name: \xff\n", "expected UTF-8"),
    ],
)
def test_what_is_no_configuration(tmp_path: Path, content: bytes, expected: str) -> None:
    path = tmp_path / "run.yaml"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=expected) as caught:
        load_config(str(path))
    assert caught.value.where == str(path)
    assert caught.value.remedy


@pytest.mark.parametrize("name", ["none.yaml", ".", "run.yaml/none.yaml"])
def test_no_file_is_told(tmp_path: Path, name: str) -> None:
    write(tmp_path, LEAST)
    with pytest.raises(ConfigError, match="expected a YAML file") as caught:
        load_config(str(tmp_path / name))
    assert "albat init" in caught.value.remedy


def test_one_source_is_a_list_of_one(tmp_path: Path) -> None:
    single = load_config(write(tmp_path, LEAST))
    listed = load_config(write(tmp_path, LEAST | {"corpus": [{"path": "c"}]}))
    assert single == listed
    assert [source.path for source in single.corpus] == [str(tmp_path / "c")]
    several = load_config(
        write(tmp_path, LEAST | {"heldout": [{"path": "x"}, {"path": ["y", "z"]}]})
    )
    assert [s.paths for s in several.heldout] == [
        (str(tmp_path / "x"),),
        (str(tmp_path / "y"), str(tmp_path / "z")),
    ]


def test_inputs_are_relative_to_the_file_and_outputs_to_the_caller(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here" / "b").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "here", LEAST | {"adaptation": {"path": ["/abs/a", "s3://bucket/a", "../a"]}})
    config = load_config("here/run.yaml")
    assert config.backbone.path == str(tmp_path / "here" / "b")
    assert config.corpus[0].path == str(tmp_path / "here" / "c")
    absolute, remote, above = config.adaptation[0].paths
    assert (absolute, remote) == ("/abs/a", "s3://bucket/a")
    assert Path(above).resolve() == tmp_path / "a"
    assert (config.output, config.runtime.root) == ("runs", ".albat")


def test_a_file_named_from_home_or_by_an_address_has_its_inputs_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    monkeypatch.setenv("HOME", str(tmp_path))
    path = write(tmp_path, LEAST)
    for name in ("~/run.yaml", f"file://{path}"):
        assert load_config(name).corpus[0].path == str(tmp_path / "c")


def test_a_name_that_begins_with_a_tilde_and_no_user_is_a_file(tmp_path: Path) -> None:
    config = load_config(write(tmp_path, LEAST | {"corpus": {"path": "~$lock/c"}}))
    assert config.corpus[0].path == str(tmp_path / "~$lock" / "c")


def test_addresses_and_hub_ids_are_left_as_they_are(tmp_path: Path) -> None:
    content = {"backbone": {"path": "owner/name"}, "corpus": {"path": f"file://{tmp_path}/c"}}
    config = load_config(write(tmp_path, LEAST | content))
    assert config.backbone.path == "owner/name"  # no such folder: taken for a hub id
    assert config.corpus[0].path == f"file://{tmp_path}/c"


def test_remote_configuration_has_its_inputs_beside_it(tmp_path: Path) -> None:
    import fsspec

    memory = fsspec.filesystem("memory")
    paths = ["./a", "../a", "../../../a//b/", "x/../*.txt"]
    memory.pipe(
        "/conf/of[1]/run.yaml", yaml.safe_dump(LEAST | {"adaptation": {"path": paths}}).encode()
    )
    memory.pipe("/conf/of[1]/b/config.json", b"{}")
    try:
        config = load_config("memory://conf/of[1]/run.yaml")
    finally:
        memory.rm("/conf", recursive=True)
    assert config.corpus[0].path == "memory://conf/of[1]/c"
    assert config.backbone.path == "memory://conf/of[1]/b"
    assert config.adaptation[0].paths == (
        "memory://conf/of[1]/a",
        "memory://conf/a",
        "memory://conf/a//b",
        "memory://conf/of[[]1]/*.txt",
    )


def test_overrides_replace_the_runtime_and_change_no_result(tmp_path: Path) -> None:
    path = write(tmp_path, LEAST | {"runtime": {"root": "there", "workers": 3}})
    config = load_config(path, {"root": "elsewhere", "device": "cpu"})
    assert (config.runtime.root, config.runtime.device) == ("elsewhere", "cpu")
    assert config.runtime.workers == 3
    assert config.model_copy(update={"runtime": None}) == load_config(path).model_copy(
        update={"runtime": None}
    )
    (said,) = mistakes(tmp_path, LEAST, device="tpu")
    assert said.startswith("line 1: 'runtime.device': input should be 'auto', 'cpu' or 'cuda'")
    (said,) = mistakes(tmp_path, LEAST | {"runtime": 5}, root="x")
    assert "'runtime': expected settings of its own, below it" in said


def uncommented(text: str) -> str:
    """Take the # off every line that shows a default."""
    return re.sub(r"^( *)#(?=[a-z_]+:)", r"\1", text, flags=re.MULTILINE)


def test_starter_config_shows_every_field_and_true_defaults(tmp_path: Path) -> None:
    text = starter_config()
    assert load_config(write(tmp_path, text)) == load_config(write(tmp_path, uncommented(text)))
    every = load_config(write(tmp_path, uncommented(text)))
    for name, value in yaml.safe_load(uncommented(text)).items():
        given = getattr(every, name)
        if isinstance(given, BaseModel):
            assert set(value) == set(type(given).model_fields), name
            assert None not in [value[key] for key in ("scorer",) if key in value], name
    for name in RunConfig.model_fields:
        assert re.search(rf"^#?{name}:", text, re.MULTILINE), name


def test_starter_config_needs_only_its_paths_replaced(tmp_path: Path) -> None:
    text = starter_config()
    for name in ("path/to/backbone", "path/to/corpus/*.parquet", "path/to/adaptation.jsonl"):
        assert text.count(name) == 1
        text = text.replace(name, name.rpartition("/")[2])
    config = load_config(write(tmp_path, text))
    expected = RunConfig(
        backbone={"path": "backbone"},
        corpus={"path": str(tmp_path / "*.parquet")},
        adaptation={"path": str(tmp_path / "adaptation.jsonl")},
    )
    assert config == expected


@pytest.mark.parametrize(
    ("old", "expected"),
    [
        ({"mixture": {"rows": 20}}, "'mixture.rows' is now 'selection.rows'"),
        ({"mixture": {"weigh": "even"}}, "'mixture.weigh' is now 'selection.weigh'"),
        ({"mixing": {"folds": 2}}, "'mixing' is now 'estimate'"),
        ({"dataset": {"shard_rows": 7}}, "'dataset' is now 'mixture'"),
        ({"scoring": {"damping": 3.0}}, "'scoring.damping' is now 'scoring.scorer.damping'"),
    ],
)
def test_keys_of_before_are_refused_with_their_new_names(
    tmp_path: Path, old: dict[str, Any], expected: str
) -> None:
    assert any(expected in line for line in mistakes(tmp_path, LEAST | old))


def test_a_path_alone_is_a_source(tmp_path: Path) -> None:
    config = load_config(write(tmp_path, LEAST | {"corpus": "c.txt", "adaptation": ["a", "b"]}))
    assert [source.paths for source in config.corpus] == [(str(tmp_path / "c.txt"),)]
    assert [source.paths for source in config.adaptation] == [
        (str(tmp_path / "a"),),
        (str(tmp_path / "b"),),
    ]
    assert RunConfig(**LEAST | {"corpus": tmp_path}).corpus[0].path == str(tmp_path)


@pytest.mark.parametrize("name", ["x[1]", "y{a,b}", "z*"])
def test_a_glob_beside_a_file_whose_folder_looks_like_one(tmp_path: Path, name: str) -> None:
    folder = tmp_path / name
    folder.mkdir()
    (folder / "c1.jsonl").write_text("")
    config = load_config(write(folder, LEAST | {"corpus": {"path": "c*.jsonl"}}))
    assert storage.list_files(config.corpus[0].paths[0]) == [str(folder / "c1.jsonl")]


def test_a_key_uncommented_without_its_section(tmp_path: Path) -> None:
    whole = starter_config()
    head, _, tail = whole.partition("#surrogate:")
    section = "surrogate:" + tail
    key = section.replace("  #learning_rate", "  learning_rate", 1)
    (said,) = mistakes(tmp_path, head + "#" + key)
    assert re.search(r"'learning_rate': uncomment `surrogate:` \(line \d+\) above it too", said)
    load_config(write(tmp_path, head + key))
    deep = section.replace("    #rank", "    rank", 1)
    (said,) = mistakes(tmp_path, head + "#" + deep)
    assert "uncomment `surrogate:`" in said
    assert "and `adapter:`" in said
    with pytest.raises(ConfigError, match="line 3: 'steps': uncomment `surrogate:`"):
        load_config(write(tmp_path, "name: x\n#surrogate:\n  steps: 3\n"))


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*/*.yaml")), ids=lambda p: p.stem)
def test_the_examples_can_be_read(path: Path) -> None:
    load: Callable[[str], RunConfig | EfficacyConfig] = load_config
    if path.parent.name == "efficacy":
        load = load_efficacy
    assert load(str(path)).name
