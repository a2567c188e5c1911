"""The recipes of CONTRIBUTING.md work as they are written: each is followed here."""

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from albat_core.backbones import open_backbone
from albat_core.backbones.adapters import ADAPTERS, AdapterConfig
from albat_core.backbones.base import FixedNoise
from albat_core.backbones.config import BackboneConfig
from albat_core.backbones.diffusion.families import FAMILIES
from albat_core.errors import InputError
from albat_core.pictures import png_file
from albat_core.records.examples import Example, example_text
from albat_core.records.scores import read_scores
from albat_core.records.shards import iterate_part, parts_of, read_examples
from albat_core.records.splits import TRAIN, read_role
from albat_core.runs.chain import Chain
from albat_core.runs.config import RunConfig
from albat_core.runs.steps import Steps, call_here
from albat_core.scorers import SCORERS
from albat_core.sources.config import SourceConfig
from albat_core.sources.files import find_files
from albat_core.sources.formats import FORMATS
from albat_core.stages.shard import ShardConfig, make_shards
from albat_core.store.artifacts import ArtifactStore
from albat_core.store.stage import Runtime
from albat_core.trackers import TRACKERS, Tracking, followed_by
from flows.config import load_config
from tasks import stages
from tasks.caching import lift
from tests.pictures import write_image_run

CONTRIBUTING = (Path(__file__).parent.parent / "CONTRIBUTING.md").read_text()

Recipe = Callable[[str], ModuleType]


@pytest.fixture
def recipe(monkeypatch: pytest.MonkeyPatch) -> Recipe:
    """Give a recipe's file as the module that it is to become."""

    def read(name: str) -> ModuleType:
        found = re.search(rf"<!-- tested: {name} -->\n```python\n(.*?)```", CONTRIBUTING, re.DOTALL)
        assert found, name
        module = ModuleType(f"added_{name}")
        monkeypatch.setitem(sys.modules, module.__name__, module)  # pydantic looks names up there
        exec(compile(found[1], f"CONTRIBUTING.md: {name}", "exec"), module.__dict__)
        return module

    return read


def test_a_scorer_is_one_file_and_one_line(
    recipe: Recipe, run_config: RunConfig, store: ArtifactStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(SCORERS, "length", recipe("scorer").Length)
    settings = run_config.model_dump(mode="json") | {
        "scoring": {"scorer": {"name": "length", "most": 6}}
    }
    chain = Chain(RunConfig.model_validate(settings))
    scores = read_scores(store, chain.scores)
    rows = read_examples(store, scores["shard"].to_pylist(), scores["row"].to_pylist())
    expected = [min(len(example_text(row).split()), 6) for row in rows]
    assert scores["score"].to_pylist() == expected
    assert store.manifest(chain.scores).config["scorer"] == {"name": "length", "most": 6}
    assert store.manifest(chain.scores).inputs["surrogate"] is None
    assert chain.selection
    assert not [s.label for s in chain.stages if s.label.startswith("fine-tune")]  # none needed
    with pytest.raises(ValueError, match="settings of length: most"):
        RunConfig.model_validate(settings | {"scoring": {"scorer": {"name": "length", "lest": 6}}})


def test_a_file_format_is_one_file_and_one_line(
    recipe: Recipe,
    backbone_config: BackboneConfig,
    runtime: Runtime,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(FORMATS, "tsv", recipe("format").TabTable())
    path = tmp_path / "rows.tsv"
    path.write_text("id\ttext\na\tleaf root\nb\tstem bark\n")
    (file,) = find_files(SourceConfig(path=str(path), id_column="id"))
    assert file.format == "tsv"
    shards = make_shards(file, backbone_config, ShardConfig(), runtime)
    store = ArtifactStore(runtime.root)
    rows = [
        row for part in parts_of(store, [shards]) for b in iterate_part(store, part) for row in b
    ]
    assert [(row.example_id, row.text) for row in rows] == [("a", "leaf root"), ("b", "stem bark")]
    (other,) = find_files(SourceConfig(path=str(path), text_column="words", format="tsv"))
    with pytest.raises(InputError, match="words"):
        make_shards(other, backbone_config, ShardConfig(), runtime)


def test_a_picture_family_is_one_file_and_one_line(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    family = recipe("family").PerturbedAttention
    monkeypatch.setitem(FAMILIES, family.pipeline_class, family)
    run = load_config(str(write_image_run(tmp_path)))
    index = Path(run.backbone.path) / "model_index.json"
    pixels = (np.arange(3 * 32 * 32).reshape(32, 32, 3) % 251).astype(np.uint8)
    losses = []
    for name in (None, family.pipeline_class):
        if name:
            described = json.loads(index.read_text()) | {"_class_name": name}
            index.write_text(json.dumps(described))
        with open_backbone(run.backbone, run.runtime) as backbone:
            assert type(backbone._family).__name__ == (
                family.__name__ if name else "StableDiffusion"
            )
            rows = backbone.pieces(Example("a", "a", "s", "a red square", image=png_file(pixels)))
            losses.append(backbone.losses(backbone.encode(rows), FixedNoise(2)).mean)
    assert torch.equal(*losses)


def test_a_kind_of_adapter_is_one_entry(
    recipe: Recipe, backbone: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(ADAPTERS, "rslora", recipe("adapter").rslora)
    for kind, scale in (("lora", 8 / 4), ("rslora", 8 / 4**0.5)):
        backbone.attach_adapter(AdapterConfig(kind=kind, rank=4, lora_alpha=8.0), seed=0)
        modules = backbone._adapted.modules()
        layers = [m for m in modules if isinstance(getattr(m, "scaling", None), dict)]
        assert layers
        assert {layer.scaling["default"] for layer in layers} == {scale}
        backbone.save_adapter(tmp_path / kind)
        backbone.detach_adapter()
        saved = json.loads((tmp_path / kind / "adapter_config.json").read_text())
        assert saved["use_rslora"] == (kind == "rslora")


def test_a_tracker_is_one_file_and_one_line(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(TRACKERS, "lines", recipe("tracker").Lines)
    tracking = Tracking(to=("lines",), project="run", folder=str(tmp_path))
    for steps in (range(3), range(1, 5)):  # the second goes on from before where the first ended
        with followed_by(tracking, "surrogate", "key") as followed:
            for step in steps:
                followed.log({"train/loss": float(step)}, step)
    points = [json.loads(line) for line in (tmp_path / "key.jsonl").read_text().splitlines()]
    assert [point["step"] for point in points] == [0, 1, 2, 3, 4]
    assert all(point["train/loss"] == point["step"] for point in points)
    with pytest.raises(ValueError, match=", lines"):
        Tracking(to=("line",))


def test_a_stage_is_one_file_and_a_line_for_its_task(
    recipe: Recipe, chain: Chain, store: ArtifactStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    added = recipe("stage")
    monkeypatch.setitem(stages.TASKS, added.count_words, lift(added.count_words, "count words"))
    steps = Steps(call_here, store)
    asked = {"split": chain.inputs.adaptation, "runtime": chain.config.runtime}
    ref = steps.run("count", added.count_words, config=added.CountConfig(shortest=5), **asked)
    rows = read_role(store, chain.inputs.adaptation, TRAIN)
    words = [word for row in rows for word in (row.text or "").split()]
    assert store.manifest(ref).facts["words"] == sum(len(word) >= 5 for word in words) > 0
    again = Steps(call_here, store).run(
        "count", added.count_words, config=added.CountConfig(shortest=5), **asked
    )
    assert again == ref and again.reused
    task = stages.task_for(added.count_words, asked)
    assert task.name == "count words"


def test_every_command_named_is_one_of_the_makefile() -> None:
    targets = set(
        re.findall(
            r"^([a-z-]+):", (Path(__file__).parents[1] / "Makefile").read_text(), re.MULTILINE
        )
    )
    named = set(re.findall(r"^make ([a-z-]+)", CONTRIBUTING, re.MULTILINE))
    assert named
    assert named <= targets
