"""Mixtures of texts, prompts and chats: read back as they were, trained on by TRL as they lie."""

import re
from collections.abc import Callable
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from datasets import load_dataset
from transformers import AutoTokenizer

from albat_core.backbones import open_backbone
from albat_core.backbones.config import BackboneConfig
from albat_core.backbones.language.tokens import TextEncoder
from albat_core.records.examples import Example, examples_to_table
from albat_core.records.mixtures import described_rows, read_mixture
from albat_core.records.selections import SELECTION, SELECTION_SCHEMA
from albat_core.records.tables import write_table
from albat_core.stages.mix import MixtureConfig, write_mixture
from albat_core.store.artifacts import ArtifactRef, ArtifactStore, Built
from albat_core.store.stage import Runtime
from tests.toys import save_backbone, sentences

KINDS = {
    "text": lambda n, text: {"text": text},
    "prompt": lambda n, text: {"text": f"Question {n}: {text}", "prompt": f"Question {n}: "},
    "empty prompt": lambda n, text: {"text": text, "prompt": ""},
    "chat": lambda n, text: {
        "messages": (
            {"role": "user", "content": f"and {n}?"},
            {"role": "assistant", "content": text},
        )
    },
}
MIXTURES = [
    (("text",), ("text",), {"text"}),
    (("prompt",), ("text",), {"prompt", "completion"}),
    (("prompt", "empty prompt"), ("prompt",), {"prompt", "completion"}),
    (("chat",), ("chat",), {"messages"}),
    (("chat", "text", "prompt"), ("text", "chat", "prompt"), None),
]
CONTENTS = {"text", "prompt", "completion", "messages"}
TEMPLATE = (  # TRL finds the assistant's tokens by `generation`
    "{% for m in messages %}{{ '<s>' + m['role'] + '\n' }}"
    "{% if m['role'] == 'assistant' %}"
    "{% generation %}{{ m['content'] + '</s>' }}{% endgeneration %}"
    "{% else %}{{ m['content'] + '</s>' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<s>assistant\n' }}{% endif %}"
)


def rows(name: str, kinds: tuple[str, ...], count: int) -> list[Example]:
    """Examples of those kinds by turns."""
    texts = sentences("plants", count, len(name))
    return [
        Example(f"{name}{n}", f"d{n}", name, **KINDS[kind](n, text))
        for n, (kind, text) in enumerate(zip(islice(cycle(kinds), count), texts, strict=True))
    ]


class Made:
    """A mixture of 6 adaptation rows and 9 of a corpus at alpha 0.4."""

    def __init__(self, root: Path, own: tuple[str, ...], others: tuple[str, ...]) -> None:
        self.store = ArtifactStore(str(root))
        self.own, self.others = rows("own", own, 6), rows("corpus", others, 9)
        adaptation = self._kept("split", "train.parquet", examples_to_table(self.own))
        shard = self._kept("shards", "0.parquet", examples_to_table(self.others))
        self.weights = np.arange(1, 10) / 45
        chosen = [
            {
                "example_id": example.example_id,
                "source": "corpus",
                "shard": f"{shard.key}/0.parquet",
                "row": n,
                "turn": 0,
                "weight": weight,
            }
            for n, (example, weight) in enumerate(zip(self.others, self.weights, strict=True))
        ]
        selection = self._kept(
            "selection", SELECTION, pa.Table.from_pylist(chosen, schema=SELECTION_SCHEMA)
        )
        self.ref = write_mixture(
            adaptation, selection, 0.4, MixtureConfig(shard_rows=4), Runtime(root=str(root))
        )
        self.folder = self.store.folder(self.ref)
        self.card = (self.folder / "README.md").read_text()
        named = re.findall(r"config_name: (\w+)", self.card)
        self.configs = [None if name == "default" else name for name in named]

    def _kept(self, stage: str, file: str, table: pa.Table) -> ArtifactRef:
        def build(folder: Path) -> Built:
            write_table(table, folder / file)
            return Built(rows=table.num_rows)

        return self.store.produce(stage, 1, {}, {}, build)

    def by_id(self) -> dict[str, Example]:
        return {e.example_id: e for e in self.own + self.others}

    def opened(self, config: str | None, cache: Path) -> Any:
        return load_dataset(str(self.folder), config, split="train", cache_dir=str(cache))


@pytest.fixture(params=MIXTURES, ids=lambda p: f"{'+'.join(p[0])} with {'+'.join(p[1])}")
def made(request: Any, tmp_path: Path) -> tuple[Made, set[str] | None]:
    own, others, columns = request.param
    return Made(tmp_path / "artifacts", own, others), columns


def test_is_read_back_as_it_was(made: tuple[Made, Any]) -> None:
    mixture, _ = made
    found = read_mixture(mixture.store, mixture.ref)
    assert list(found.adaptation) == mixture.own
    assert list(found.backbone) == mixture.others
    assert found.backbone[-1] == mixture.others[-1]
    assert found.backbone[2:7:2] == mixture.others[2:7:2]
    assert found.weights == pytest.approx(mixture.weights)
    described = described_rows(mixture.store, mixture.ref)
    assert set(described["example_id"].to_pylist()) == set(mixture.by_id())
    assert sum(described["weight"].to_pylist()) == pytest.approx(1)


def test_columns_are_named_as_trl_does(made: tuple[Made, Any], tmp_path: Path) -> None:
    mixture, columns = made
    found, weight = [], 0.0
    for config in mixture.configs:
        opened = mixture.opened(config, tmp_path / "cache")
        found.append(CONTENTS & set(opened.column_names))
        assert all(row[name] is not None for row in opened for name in found[-1])
        weight += sum(opened["weight"])
    assert found == ([columns] if columns else [{"messages"}, {"prompt", "completion"}])
    assert weight == pytest.approx(1)


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = save_backbone(tmp_path_factory.mktemp("trl") / "backbone")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.slow
def test_trl_trains_on_a_mixture_as_it_lies(
    made: tuple[Made, Any], backbone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trl = pytest.importorskip("trl")
    monkeypatch.chdir(tmp_path)
    mixture, _ = made
    encoder = TextEncoder(BackboneConfig(path=str(backbone), max_length=128))
    seen = 0
    for config in mixture.configs:
        chats = bool(mixture.opened(config, tmp_path / "cache")[0].get("messages"))
        args = trl.SFTConfig(max_steps=1, assistant_only_loss=chats, bf16=False)
        trainer = trl.SFTTrainer(
            str(backbone), args, train_dataset=mixture.opened(config, tmp_path / "cache")
        )
        for row in trainer.train_dataset:
            ids, mask = encoder.tokens(mixture.by_id()[row["example_id"]])
            learned = [i if m else -100 for i, m in zip(ids, mask, strict=True)]
            assert row["input_ids"] == ids
            assert row["labels"][1:] == learned[1:]  # none predicts the first
            seen += 1
        assert np.isfinite(trainer.train().training_loss)
    assert seen == 15


@pytest.fixture
def trained(
    made: tuple[Made, Any], backbone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[], tuple[Made, dict[str, Any]]]:
    """Give what runs the recipe of a mixture's card."""

    def run() -> tuple[Made, dict[str, Any]]:
        monkeypatch.chdir(tmp_path)
        mixture, _ = made
        [recipe] = re.findall(r"```python\n(.*?)```", mixture.card, re.DOTALL)
        for old, new in (
            ('"path/to/backbone"', repr(str(backbone))),
            ('"path/to/this/folder"', repr(str(mixture.folder))),
            ("steps, batch = 100, 8", "steps, batch = 2, 300"),
        ):
            assert old in recipe
            recipe = recipe.replace(old, new)
        found: dict[str, Any] = {}
        exec(recipe, found)
        return mixture, found

    return run


@pytest.mark.slow
def test_the_card_s_recipe_trains_by_the_weights(
    trained: Callable[[], tuple[Made, dict[str, Any]]], backbone: Path, tmp_path: Path
) -> None:
    pytest.importorskip("trl")
    mixture, found = trained()
    encoder = TextEncoder(BackboneConfig(path=str(backbone), max_length=128))
    names = {tuple(encoder.tokens(e)[0]): e.example_id for e in mixture.by_id().values()}
    given = found["trainer"].train_dataset
    assert len(given) == 600
    drawn = [names[tuple(row["input_ids"])] for row in given]
    expected = dict.fromkeys((e.example_id for e in mixture.own), 0.6 / 6)
    ids = (e.example_id for e in mixture.others)
    expected |= zip(ids, 0.4 * mixture.weights, strict=True)
    for name, weight in expected.items():
        deviation = np.sqrt(weight * (1 - weight) / 600)
        assert abs(drawn.count(name) / 600 - weight) < 4.5 * deviation, name

    # each row counts by its mean loss, as in albat's own objective
    config = BackboneConfig(path=str(backbone), max_length=128, dtype="float32")
    with open_backbone(config, Runtime(root=str(tmp_path), device="cpu")) as opened:
        examples = mixture.own + mixture.others
        expected_loss = opened.losses(opened.encode(examples)).mean.mean()
    trainer = found["MeanOfRows"](
        str(backbone), found["args"], train_dataset=found["rows"].select(range(1))
    )
    wanted = [encoder.tokens(example) for example in examples]
    batch = trainer.data_collator(
        [
            {"input_ids": i, "labels": [t if m else -100 for t, m in zip(i, mask, strict=True)]}
            for i, mask in wanted
        ]
    )
    with torch.no_grad():
        loss = trainer.compute_loss(trainer.model, batch)
    torch.testing.assert_close(loss, expected_loss, rtol=1e-4, atol=1e-4)


def test_the_recipe_leaves_out_what_trl_would_learn_against_its_weight(
    made: tuple[Made, Any], tmp_path: Path
) -> None:
    mixture, _ = made
    filters = re.findall(r"rows\.filter\((lambda .*)\)$", mixture.card, re.MULTILINE)
    opened = (mixture.opened(config, tmp_path / "cache") for config in mixture.configs)
    chats = any("messages" in each.column_names for each in opened)
    assert len(filters) == chats == ("{% generation %}" in mixture.card)
    for each in filters:
        keeps = eval(each)
        said = {"role": "assistant", "content": "seed"}
        assert keeps({"messages": [said, said | {"weight": 1}, said | {"weight": None}]})
        assert not keeps({"messages": [said | {"weight": 0}, said]})
