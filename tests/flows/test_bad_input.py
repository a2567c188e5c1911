"""Every kind of bad input: the error says what to do, and nothing is left that looks finished."""

import errno
import gzip
import json
import logging
import os
import sys
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from transformers import LlamaForCausalLM

from albat_core.backbones import weights_of
from albat_core.errors import (
    AlbatError,
    BackboneError,
    ConfigError,
    DimensionMismatchError,
    InputError,
    StorageFullError,
    TrainingError,
    TransientError,
)
from albat_core.runs.chain import Chain
from albat_core.runs.config import RunConfig
from albat_core.stages.embed import EmbeddingConfig, embed_queries
from albat_core.stages.evaluate import evaluate
from albat_core.stages.report import PAGE, read_results
from albat_core.stages.retrieve import RetrievalConfig, retrieve_candidates
from albat_core.stages.shard import STAGE as SHARDS
from albat_core.store.artifacts import ArtifactStore, Built
from albat_core.training import config as training
from flows import checks
from flows.albat import chain_of
from flows.checks import find_mistakes
from flows.config import load_config
from tests.pictures import write_image_run
from tests.toys import rewrite, save_backbone, topic_rows, write_jsonl, write_run

Spoil = Callable[[Path], dict[str, Any] | None]


def asked(config: RunConfig, stage: str) -> object:
    """Ask a run's chain for what a stage makes."""
    chain = Chain(config)
    return getattr(chain if hasattr(Chain, stage) else chain.inputs, stage)


def refused(action: Callable[[], object], kind: type[AlbatError], *said: str) -> AlbatError:
    """Return the error that an action ends in, after checking that it can be acted on."""
    with pytest.raises(AlbatError) as caught:
        action()
    assert type(caught.value) is kind
    assert caught.value.where
    assert caught.value.remedy
    for text in said:
        assert text in str(caught.value), f"{text!r} is not in: {caught.value}"
    return caught.value


def stages_left(config: RunConfig) -> set[str]:
    """Return the stages with finished artifacts, after checking that all are whole."""
    store = ArtifactStore(config.runtime.root)
    refs = list(store.all_refs())
    for ref in refs:
        assert store.changed_files(ref) == []
    drafts = Path(config.runtime.root) / "drafts"
    assert not drafts.exists() or not list(drafts.iterdir())
    return {ref.stage for ref in refs} - {"ids"}  # a note beside whole shards


def as_corpus(name: str, content: bytes, **source: Any) -> Spoil:
    """Make the corpus one file of that content."""

    def spoil(folder: Path) -> dict[str, Any]:
        (folder / name).write_bytes(content)
        return {"corpus": {"path": name, **source}}

    return spoil


def as_adaptation(rows: list[dict[str, Any]], **source: Any) -> Spoil:
    def spoil(folder: Path) -> dict[str, Any]:
        write_jsonl(folder / "adaptation.jsonl", rows)
        return {"adaptation": {"path": "adaptation.jsonl", **source}}

    return spoil


def lines(*rows: object) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def parquet_bytes() -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table({"text": ["leaf root seed"] * 500}), sink)
    return sink.getvalue().to_pybytes()


def repeat_across_files(folder: Path) -> None:
    write_jsonl(folder / "corpus" / "ships.jsonl", topic_rows("plants", 3))


def overlap(folder: Path) -> dict[str, Any]:
    return {"heldout": {"path": "adaptation.jsonl", "document_column": "doc"}}


def repeat_in_adaptation(folder: Path) -> dict[str, Any]:
    rows = topic_rows("plants", 40, seed=1)
    write_jsonl(folder / "more.jsonl", [rows[3] | {"doc": "another"}])
    columns = {"id_column": "id", "document_column": "doc"}
    return {"adaptation": {"path": ["adaptation.jsonl", "more.jsonl"], **columns}}


def chats_without_template(folder: Path) -> dict[str, Any]:
    (folder / "backbone" / "chat_template.jinja").unlink()
    chat = [{"role": "user", "content": "leaf"}, {"role": "assistant", "content": "root"}]
    write_jsonl(folder / "chats.jsonl", [{"messages": chat}] * 12)
    return {"adaptation": {"path": "chats.jsonl", "messages_column": "messages"}}


def other_vocabulary(folder: Path) -> None:
    save_backbone(folder / "backbone", vocabulary=100)


def without_backbone(folder: Path) -> dict[str, Any]:
    return {"backbone": {"path": "./none"}}


def pickled_backbone(folder: Path) -> None:
    (folder / "backbone" / "model.safetensors").rename(folder / "backbone" / "pytorch_model.bin")


def unfinished_backbone(folder: Path) -> None:
    file = folder / "backbone" / "model.safetensors"
    weights = load_file(file)
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, file, {"format": "pt"})


def spoilt_weights(folder: Path) -> None:
    file = folder / "backbone" / "model.safetensors"
    weights = load_file(file)
    weights["model.norm.weight"][3] = torch.nan
    save_file(weights, file, {"format": "pt"})


def wild_training(folder: Path) -> dict[str, Any]:
    training = {"steps": 12, "batch_size": 4, "evaluate_every": 4, "learning_rate": 1e30}
    return {"surrogate": training}


def file_for_root(folder: Path) -> dict[str, Any]:
    (folder / "artifacts").write_text("")
    return {"runtime": {"root": str(folder / "artifacts" / "below"), "device": "cpu"}}


@dataclass(frozen=True)
class Case:
    """A way to spoil a run.

    Args:
        spoil: changes the toy's files, and returns what to change in its configuration.
        kind: of the error.
        said: what the error tells.
        stage: of the chain, the one that must not come to be.
        left: kinds of artifacts that are finished before it.
        early: whether `albat check` finds it.
    """

    spoil: Spoil
    kind: type[AlbatError]
    said: tuple[str, ...]
    stage: str = "corpus"
    left: set[str] = field(default_factory=set)
    early: bool = True


PARQUET = parquet_bytes()
CASES = {
    "missing path": Case(
        lambda _: {"corpus": {"path": "corpus/plant.jsonl"}},
        InputError,
        ("corpus/plant.jsonl", "found none", "did you mean", "corpus/plants.jsonl?"),
    ),
    "empty folder": Case(
        lambda folder: (folder / "void").mkdir() or {"corpus": {"path": "void"}},
        InputError,
        ("/void: expected files, found none",),
    ),
    "missing column": Case(
        lambda _: {"corpus": {"path": "corpus/ships.jsonl", "text_column": "txt"}},
        InputError,
        ("text_column names column 'txt'", "it has 'id', 'doc', 'text'", "did you mean 'text'?"),
    ),
    "empty file": Case(
        as_corpus("rows.jsonl", b""),
        InputError,
        ("rows.jsonl: expected rows with text, got 0",),
        left={SHARDS},
    ),
    "no text in any row": Case(
        as_corpus("rows.jsonl", lines({"text": None}, {"text": "  "})),
        InputError,
        ("got 2 rows, 2 of them null or blank ('text' in 2)",),
        left={SHARDS},
    ),
    "blank text file": Case(
        as_corpus("note.txt", b" \n"),
        InputError,
        ("expected rows with text, got 1 rows",),
        left={SHARDS},
    ),
    "not JSON": Case(
        as_corpus("rows.jsonl", lines({"text": "leaf"}) + b"leaf root\n"),
        InputError,
        ("rows.jsonl: expected a JSON object in each line, line 2 is not JSON",),
    ),
    "Parquet that is JSON": Case(
        as_corpus("rows.parquet", lines({"text": "leaf"})),
        InputError,
        ("rows.parquet: expected Parquet, found something else",),
    ),
    "lines that are gzip": Case(
        as_corpus("rows.jsonl", gzip.compress(lines({"text": "leaf"}))),
        InputError,
        ("expected JSON lines in UTF-8, found gzip", "an ending that says so"),
    ),
    "truncated Parquet": Case(
        as_corpus("rows.parquet", PARQUET[: len(PARQUET) // 2]),
        InputError,
        ("rows.parquet: expected Parquet, its end is missing: the file is truncated",),
    ),
    "damaged Parquet": Case(
        as_corpus("rows.parquet", PARQUET[:8] + b"\xff" * 40 + PARQUET[48:]),
        InputError,
        ("rows.parquet: the file is damaged or truncated", "write or copy it again"),
    ),
    "not UTF-8": Case(
        as_corpus("rows.jsonl", lines({"text": "leaf"}) + b'{"text": "Gr\xfc\xdfe"}\n'),
        InputError,
        ("rows.jsonl: expected UTF-8, got 0xfc at line 2, byte 12",),
    ),
    "null refused": Case(
        as_corpus("rows.jsonl", lines({"text": "leaf"}, {"text": None}), on_null="refuse"),
        InputError,
        ("rows.jsonl:1: expected text", "set on_null to skip"),
    ),
    "overlong refused": Case(
        as_corpus("rows.jsonl", lines({"text": "leaf " * 500}), overlong="refuse"),
        InputError,
        (
            "rows.jsonl:0: expected a row that fits whole in 64 tokens",
            "set overlong to split or truncate",
        ),
    ),
    "id twice in a file": Case(
        as_corpus(
            "rows.jsonl",
            lines({"id": 1, "text": "leaf"}, {"id": 2, "text": "sail"}, {"id": 1, "text": "bud"}),
            id_column="id",
        ),
        InputError,
        ("rows.jsonl:2: expected each id once, '1' is also in", "rows.jsonl:0"),
    ),
    "id twice across files": Case(
        repeat_across_files,
        InputError,
        ("ships.jsonl", "expected each id once, 'plants-0-0' is also in", "drop id_column"),
        stage="embeddings",
        left={SHARDS},
    ),
    "id twice in the adaptation set": Case(
        repeat_in_adaptation,
        InputError,
        ("expected each id once, 'plants-1-3'", "make the ids unique"),
        stage="adaptation",
        left={SHARDS},
    ),
    "empty adaptation set": Case(
        as_adaptation([]),
        InputError,
        ("adaptation.jsonl: expected rows with text, got 0 rows",),
        stage="adaptation",
        left={SHARDS},
    ),
    "adaptation set without text": Case(
        as_adaptation([{"text": ""}] * 9),
        InputError,
        ("got 9 rows, 9 of them null or blank",),
        stage="adaptation",
        left={SHARDS},
    ),
    "fewer documents than folds": Case(
        as_adaptation(
            [{"text": f"leaf root {n % 3}", "doc": n % 3} for n in range(9)], document_column="doc"
        ),
        InputError,
        ("expected at least 3 documents to train and validate on (split.folds), got 2 of 3",),
        stage="adaptation",
        left={SHARDS},
    ),
    "documents that repeat one another": Case(
        as_adaptation([{"text": "leaf root", "doc": n} for n in range(9)], document_column="doc"),
        InputError,
        ("got 0 of 1", "documents that repeat one another count once"),
        stage="adaptation",
        left={SHARDS},
    ),
    "held-out documents that are trained on": Case(
        overlap,
        InputError,
        ("are in both sets", "held-out documents must not be trained on"),
        stage="adaptation",
        left={SHARDS},
    ),
    "no held-out documents": Case(
        lambda _: {"split": {"folds": 3, "test": 0.0}},
        InputError,
        ("split.test: expected held-out documents for the evaluation, got none",),
        stage="adaptation",
        left={SHARDS},
    ),
    "share that leaves fewer documents than folds": Case(
        lambda _: {"adaptation": {"path": "adaptation.jsonl", "share": 0.05}},
        InputError,
        ("expected at least 3 documents to train and validate on",),
        stage="adaptation",
        left={SHARDS},
    ),
    "chats for a tokenizer without a template": Case(
        chats_without_template,
        BackboneError,
        ("/backbone: expected a chat template for rows of messages",),
        stage="adaptation",
    ),
    "tokenizer and model that do not fit": Case(
        other_vocabulary,
        BackboneError,
        ("the tokenizer has", "tokens but the model embeds 100"),
        stage="embeddings",
        left={SHARDS},
    ),
    "more tokens than the model takes": Case(
        lambda _: {"backbone": {"path": "backbone", "max_length": 129}},
        BackboneError,
        ("max_length is 129 but the model takes 128 tokens", "128 or less"),
        stage="embeddings",
        left={SHARDS},
    ),
    "missing backbone": Case(
        without_backbone, BackboneError, ("/none: expected a model folder, found none",)
    ),
    "pickled backbone": Case(
        pickled_backbone,
        BackboneError,
        ("expected weights as *.safetensors, found pytorch_model.bin", "never read"),
    ),
    "backbone without some weights": Case(
        unfinished_backbone,
        BackboneError,
        ("expected weights for every layer, none for model.layers.1.mlp.up_proj.weight",),
        stage="embeddings",
        left={SHARDS},
        early=False,
    ),
    "weights that are not numbers": Case(
        spoilt_weights,
        BackboneError,
        ("expected finite embeddings, got NaN or infinity", "check the backbone's weights"),
        stage="embeddings",
        left={SHARDS},
        early=False,
    ),
    "loss that is not finite": Case(
        wild_training,
        TrainingError,
        ("expected a finite loss, got", "at step", "lower", "learning_rate"),
        stage="surrogate",
        left={SHARDS, "split", "mixture"},
        early=False,
    ),
    "unknown scheme of the corpus": Case(
        lambda _: {"corpus": {"path": "s4://bucket/rows.jsonl"}},
        InputError,
        ("s4://bucket/rows.jsonl: expected a local path or an s3:// address",),
    ),
    "unknown scheme of the artifacts": Case(
        lambda _: {"runtime": {"root": "s4://bucket/artifacts"}},
        InputError,
        ("s4://bucket/artifacts", "a scheme that fsspec knows"),
    ),
    "root that cannot be written": Case(
        file_for_root,
        AlbatError,
        ("artifacts/below: expected a folder that can be written", "--root"),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_bad_input_is_explained_and_leaves_nothing(name: str, tmp_path: Path) -> None:
    case = CASES[name]
    path = write_run(tmp_path)
    changes = case.spoil(tmp_path)
    if changes:
        path = rewrite(path, changes)
    config = load_config(str(path))
    found = find_mistakes(config)
    assert [type(mistake) for mistake in found] == ([case.kind] if case.early else [])
    for mistake in found:
        for text in case.said:
            assert text in str(mistake), f"{text!r} is not in: {mistake}"
        assert mistake.where
        assert mistake.remedy
    refused(lambda: asked(config, case.stage), case.kind, *case.said)
    if "://" not in config.runtime.root and not (tmp_path / "artifacts").is_file():
        assert stages_left(config) == case.left


def test_what_is_asked_of_a_sound_backbone_is_checked(tmp_path: Path) -> None:
    path = rewrite(
        write_run(tmp_path),
        {
            "finetune": {"adapter": {"target_modules": ["c_attn"]}},
            "surrogate": {"adapter": {"target_modules": ["q_proj"]}},
            "samples": {"prompts": ["sail", "sail mast " * 100]},
            "generated": {"prompts": ["mast sail " * 100]},
        },
    )
    targets, sample, generated = find_mistakes(load_config(str(path)))
    assert targets.where.startswith("finetune: ")
    assert "match no layer" in targets.message
    assert "q_proj" in targets.remedy
    for mistake, where in (
        (sample, "samples: prompt 'sail"),
        (generated, "generated: prompt 'mast"),
    ):
        assert "expected a prompt of less than" in mistake.message
        assert mistake.where.startswith(where)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[RunConfig, Chain]:
    """A run to its report whose corpus has rows without text and rows that are too long."""
    folder = tmp_path_factory.mktemp("finished")
    path = write_run(folder)
    with (folder / "corpus" / "ships.jsonl").open("a") as file:
        for n, text in enumerate([None, " ", "sail mast " * 100]):
            file.write(json.dumps({"id": f"odd-{n}", "doc": f"odd-{n}", "text": text}) + "\n")
    config = load_config(str(path))
    chain = Chain(config)
    assert chain.report
    return config, chain


def test_rows_left_out_or_cut_are_counted_and_reported(finished: tuple[RunConfig, Chain]) -> None:
    config, chain = finished
    store = ArtifactStore(config.runtime.root)
    manifest = store.manifest(chain.inputs.corpus[1])
    facts = manifest.facts
    assert facts["rows"] == 63
    assert (facts["null_rows"], facts["null_ids"]) == (2, ["odd-0", "odd-1"])
    assert (facts["split_rows"], facts["unfit_rows"], facts["left_out_rows"]) == (1, 0, 0)
    pieces = manifest.rows - 60
    assert pieces >= 3  # 200 words, of at least a token each, in pieces of at most 64
    inputs = {each.name: each for each in read_results(store, chain.report).inputs}
    assert inputs["ships.jsonl"].rows == 63
    assert inputs["ships.jsonl"].examples == 60 + pieces
    page = (store.folder(chain.report) / PAGE).read_text()
    for note in ("2 rows without text, skipped", "1 row longer than the backbone takes"):
        assert any(said.startswith(note) for said in inputs["ships.jsonl"].notes)
        assert note in page
    assert inputs["plants.jsonl"].notes == ()


def test_adapter_of_another_backbone_is_refused(
    finished: tuple[RunConfig, Chain], tmp_path: Path
) -> None:
    config, chain = finished
    other = config.backbone.model_copy(
        update={"path": str(save_backbone(tmp_path / "other", seed=5))}
    )
    before = stages_left(config)
    count = len(list(ArtifactStore(config.runtime.root).all_refs()))
    refused(
        lambda: evaluate(
            chain.surrogate, chain.inputs.adaptation, [], other, config.evaluation, config.runtime
        ),
        BackboneError,
        "the adapter was made for backbone",
        f"train one for {tmp_path / 'other'}",
    )
    assert stages_left(config) == before
    assert len(list(ArtifactStore(config.runtime.root).all_refs())) == count


def test_a_backbone_that_changed_in_place_is_loaded_again(
    finished: tuple[RunConfig, Chain], tmp_path: Path
) -> None:
    config, chain = finished
    backbone = config.backbone.model_copy(update={"path": str(save_backbone(tmp_path, seed=5))})
    store = ArtifactStore(config.runtime.root)

    def loss() -> float:
        ref = evaluate(
            None, chain.inputs.adaptation, [], backbone, config.evaluation, config.runtime
        )
        return float(store.manifest(ref).facts["loss"])

    first = loss()
    save_backbone(tmp_path, seed=6)
    second = loss()
    assert first != second
    save_backbone(tmp_path, seed=5)
    assert loss() == first


def test_index_of_another_dimension_is_refused(
    finished: tuple[RunConfig, Chain], tmp_path: Path
) -> None:
    config, chain = finished
    narrow = config.backbone.model_copy(
        update={"path": str(save_backbone(tmp_path / "narrow", width=16))}
    )
    queries = embed_queries(chain.inputs.adaptation, [], narrow, EmbeddingConfig(), config.runtime)
    refused(
        lambda: retrieve_candidates(chain.inputs.index, queries, RetrievalConfig(), config.runtime),
        DimensionMismatchError,
        f"{queries} and {chain.inputs.index}: queries have d=16 but the index has d=32",
        "embed queries and corpus with the same backbone",
    )
    retrieved = [
        r for r in ArtifactStore(config.runtime.root).all_refs() if r.stage == "candidates"
    ]
    # the run's own: by similarity and at random, before and after copies were left out
    assert len(retrieved) == 4


def test_hub_id_without_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    path = rewrite(write_run(tmp_path), {"backbone": {"path": "nobody/nothing"}})
    config = load_config(str(path))
    (found,) = find_mistakes(config)
    refused(
        lambda: Chain(config).inputs.corpus,
        BackboneError,
        "nobody/nothing: found neither a folder nor a model on the hub",
        "check the path and the network",
    )
    assert "nobody/nothing" in str(found)
    assert stages_left(config) == set()


FULL = Path("/dev/full")
needs_full = pytest.mark.skipif(not FULL.exists(), reason="needs /dev/full, which Linux has")


@needs_full
@pytest.mark.parametrize(
    ("stage", "file"),
    [
        ("corpus", "part-00000.parquet"),
        ("embeddings", "embeddings.npy"),
        ("index", "index.faiss"),
        ("index", "space.npz"),
    ],
)
def test_full_disk(stage: str, file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stage's file is one that no byte can be written to; the system itself refuses."""
    config = load_config(str(write_run(tmp_path)))
    for topic in ("plants", "ships"):  # so few rows that libraries write only as they close a file
        write_jsonl(tmp_path / "corpus" / f"{topic}.jsonl", topic_rows(topic, 10))
    draft_folder = ArtifactStore._draft_folder

    def full_folder(store: ArtifactStore) -> Path:
        folder = draft_folder(store)
        (folder / file).symlink_to(FULL)
        return folder

    before: set[str] = set()
    if stage == "index":
        assert Chain(config).inputs.embeddings
        before = stages_left(config)
    elif stage == "embeddings":
        assert Chain(config).inputs.corpus
        before = stages_left(config)
    with monkeypatch.context() as patch:
        patch.setattr(ArtifactStore, "_draft_folder", full_folder)
        refused(
            lambda: asked(config, stage),
            StorageFullError,
            "no space left",
            "run the same command again: what was finished is kept",
        )
        assert stages_left(config) == before
    assert asked(config, stage)  # the same again, with room
    assert stages_left(config) > before


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)),
        OSError(errno.EDQUOT, os.strerror(errno.EDQUOT)),
        RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)"),
    ],
)
def test_full_disk_is_known_by_whatever_a_library_raises(tmp_path: Path, error: Exception) -> None:
    store = ArtifactStore(str(tmp_path))

    def build(folder: Path) -> Built:
        (folder / "half.bin").write_bytes(np.arange(9).tobytes())
        raise error

    refused(lambda: store.produce("toy", 1, {}, {}, build), StorageFullError, "no space left")
    assert list(store.all_refs()) == []
    assert list((tmp_path / "drafts").iterdir()) == []


def test_full_disk_for_the_manifest_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = ArtifactStore(str(tmp_path))

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        refused(lambda: store.produce("toy", 1, {}, {}, lambda _: Built(rows=1)), StorageFullError)
    assert list(store.all_refs()) == []
    ref = store.produce("toy", 1, {}, {}, lambda _: Built(rows=1))
    assert not ref.reused
    assert store.manifest(ref).rows == 1


def test_output_that_cannot_be_written(finished: tuple[RunConfig, Chain], tmp_path: Path) -> None:
    config, _ = finished
    (tmp_path / "taken").write_text("")
    blocked = config.model_copy(update={"output": str(tmp_path / "taken" / "runs")})
    (found,) = find_mistakes(blocked)
    assert "taken is a file" in str(found)
    chain = Chain(blocked)
    refused(chain.export, AlbatError, "taken/runs/toy", "expected a folder that can be written")
    assert (tmp_path / "taken").read_text() == ""


def test_a_check_tells_what_a_run_would_skip_and_cut(tmp_path: Path) -> None:
    path = write_run(tmp_path)
    rows = [{"text": None}, {"text": "leaf root " * 300}, *topic_rows("plants", 20)]
    write_jsonl(tmp_path / "corpus.jsonl", rows)
    told: list[str] = []
    rewrite(path, {"corpus": "corpus.jsonl"})
    assert find_mistakes(load_config(str(path)), tell=told.append) == []
    assert [note.removeprefix(f"corpus ({tmp_path}/corpus.jsonl): ") for note in told] == [
        "of 22 rows looked at, 1 skipped: 'text' is null or blank in 1",
        "of the first 21 rows, 1 cut: over 64 tokens (backbone.max_length)",
    ]


def test_rows_of_which_none_has_room_for_an_answer_are_a_mistake(tmp_path: Path) -> None:
    asked = {"path": "long.jsonl", "prompt_template": "{q}", "answer_template": "{a}"}
    path = write_run(tmp_path)
    write_jsonl(tmp_path / "long.jsonl", [{"q": "leaf " * 200, "a": "root"}] * 20)
    config = load_config(str(rewrite(path, {"corpus": [asked, "corpus/*.jsonl"]})))
    (mistake,) = find_mistakes(config)
    assert "of the first 20 rows none has that" in str(mistake)
    assert "raise backbone.max_length" in str(mistake)


def test_a_prompt_that_says_the_answer_is_told(tmp_path: Path) -> None:
    rows = [{"q": f"leaf {n}?", "a": "root seed.", "id": f"{n}", "doc": f"{n}"} for n in range(20)]
    columns = {"path": "asked.jsonl", "id_column": "id", "document_column": "doc"}
    templates = {"prompt_template": "Q: {q} {a}\nA:", "answer_template": " {a}"}
    path = write_run(tmp_path, adaptation=columns | templates)
    write_jsonl(tmp_path / "asked.jsonl", rows)
    told: list[str] = []
    assert find_mistakes(load_config(str(path)), warn=told.append) == []
    assert any("prompt and answer both have 'a'" in note for note in told)


def test_a_warmup_as_long_as_the_training_is_told(tmp_path: Path) -> None:
    path = write_run(tmp_path)
    told: dict[int, list[str]] = {}
    for warmup in (2, 6):
        told[warmup] = []
        config = load_config(str(path))
        short = config.finetune.model_copy(update={"steps": 6, "warmup": warmup})
        config = config.model_copy(update={"finetune": short})
        assert find_mistakes(config, warn=told[warmup].append) == []
    assert not any("warmup" in note for note in told[2])
    assert any(note.startswith("finetune.warmup: 6 of 6 steps") for note in told[6])


def test_a_token_across_prompt_and_answer_is_told(tmp_path: Path) -> None:
    rows = [{"q": f"leaf {n}?", "a": "root seed.", "id": f"{n}", "doc": f"{n}"} for n in range(20)]
    columns = {"path": "asked.jsonl", "id_column": "id", "document_column": "doc"}
    parts = {"inside": ("Q: {q} A: ", "{a}"), "between": ("Q: {q} A:", " {a}")}
    told: dict[str, list[str]] = {}
    for name, (prompt, answer) in parts.items():
        templates = {"prompt_template": prompt, "answer_template": answer}
        path = write_run(tmp_path / name, adaptation=columns | templates)
        write_jsonl(path.with_name("asked.jsonl"), rows)
        told[name] = []
        assert find_mistakes(load_config(str(path)), warn=told[name].append) == []
    assert told["between"] == []
    (note,) = told["inside"]
    assert "of the first 20 rows, in 20 the end of the prompt, '" in note
    assert "end prompts before the space, and begin answers with it" in note


def test_documents_that_are_held_out_too_are_found_early(tmp_path: Path) -> None:
    rows = topic_rows("plants", 40, seed=1)
    again = [{**row, "id": f"h{row['id']}", "doc": f"h{row['doc']}"} for row in rows]
    write_jsonl(tmp_path / "held.jsonl", again)
    heldout = {"path": "held.jsonl", "id_column": "id", "document_column": "doc"}
    config = load_config(str(write_run(tmp_path, heldout=heldout)))
    met = refused(lambda: asked(config, "adaptation"), InputError, "got 0 of 0")
    (mistake,) = find_mistakes(config)
    assert str(mistake) == str(met)


def test_a_corpus_that_is_the_adaptation_set_is_found_early(tmp_path: Path) -> None:
    columns = {"id_column": "id", "document_column": "doc"}
    path = write_run(tmp_path, corpus=[{"path": "adaptation.jsonl", **columns}])
    config = load_config(str(path))
    refused(lambda: asked(config, "selection"), InputError, "got none among 40")
    (mistake,) = find_mistakes(config)
    assert "all files of the corpus are its own" in str(mistake)
    kept = config.decontamination.model_copy(update={"enabled": False})
    assert find_mistakes(config.model_copy(update={"decontamination": kept})) == []
    (tmp_path / "adaptation.jsonl").rename(tmp_path / "corpus" / "adaptation.jsonl")
    changes = {"adaptation": {"path": "corpus/adaptation.jsonl", **columns}}
    config = load_config(str(rewrite(path, {"corpus": "corpus/*.jsonl", **changes})))
    told: list[str] = []
    assert find_mistakes(config, warn=told.append) == []
    assert [note for note in told if "left out as copies: 1" in note]


def test_a_missing_faiss_is_found_early(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_run(tmp_path)
    monkeypatch.setitem(sys.modules, "faiss", None)
    (mistake,) = find_mistakes(load_config(str(path)))
    assert "FAISS is needed and not installed" in str(mistake)


def test_a_deployed_run_begins_with_a_look_for_mistakes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = load_config(str(write_run(tmp_path)))
    runtime = config.runtime.model_copy(update={"runner": "dask", "cluster": "tcp://host:8786"})
    monkeypatch.setitem(sys.modules, "faiss", None)
    monkeypatch.setattr("flows.albat.tasks_on", lambda _: nullcontext())
    monkeypatch.setattr("flows.albat.get_run_logger", logging.getLogger)
    with chain_of(config):  # its command has looked
        pass
    monkeypatch.setenv("PREFECT__RUNTIME__DEPLOYMENT__ID", "of a form")
    with chain_of(config.model_copy(update={"runtime": runtime})):  # FAISS is wanted elsewhere
        pass
    with pytest.raises(ConfigError, match=r"(?s)1 mistake found.*FAISS"), chain_of(config):
        pass
    unsure = TransientError("no answer")
    monkeypatch.setattr(checks, "find_mistakes", lambda *_, **__: [unsure])
    with chain_of(config):  # its tasks try again
        pass


def test_the_default_learning_rate_is_told_of_where_the_backbone_is_large(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_run(tmp_path)

    def notes(**changes: object) -> list[str]:
        told: list[str] = []
        config = load_config(str(rewrite(path, changes)))
        assert find_mistakes(config, warn=told.append) == []
        return told

    assert notes() == []
    weights = LlamaForCausalLM.from_pretrained(tmp_path / "backbone").num_parameters()
    assert weights_of(load_config(str(path)).backbone) == weights
    monkeypatch.setattr(checks, "_MILLIONS", weights / 1e6)
    assert notes() == []
    monkeypatch.setattr(checks, "_MILLIONS", weights / 1e6 - 0.001)
    [note] = notes()
    assert note.startswith("surrogate.learning_rate and finetune.learning_rate: at the default")
    assert "0.002" in note and "1e-4 to 2e-4" in note
    [note] = notes(finetune={"learning_rate": 1e-4})
    assert note.startswith("surrogate.learning_rate: at the default")
    assert notes(surrogate={"learning_rate": 1e-4}) == []


def test_the_default_learning_rate_is_told_of_where_prodigy_finds_its_own(tmp_path: Path) -> None:
    told: list[str] = []
    path = rewrite(write_run(tmp_path), {"finetune": {"optimizer": "prodigy"}})
    assert find_mistakes(load_config(str(path)), warn=told.append) == []
    [note] = told
    assert note.startswith("finetune.learning_rate: at the default 0.002")
    rewrite(path, {"finetune": {"optimizer": "prodigy", "learning_rate": 1.0}})
    assert find_mistakes(load_config(str(path)), warn=told.append) == []
    assert told == [note]


def test_bfloat16_is_told_of_where_the_device_has_no_instructions_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_run(tmp_path)
    backbone = yaml.safe_load(path.read_text(encoding="utf-8"))["backbone"]

    def notes(dtype: str, *, native: bool, **runtime: object) -> list[str]:
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: native)
        monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
        told: list[str] = []
        changes = {"backbone": backbone | {"dtype": dtype}, "runtime": {"device": "cpu"} | runtime}
        rewrite(path, changes)
        find_mistakes(load_config(str(path)), warn=told.append)
        return told

    [note] = notes("bfloat16", native=False)
    assert note.startswith("backbone.dtype: bfloat16, which this device has no instructions for")
    assert notes("bfloat16", native=True) == []
    assert notes("auto", native=False) == notes("float32", native=False) == []
    cluster = {"runner": "dask", "cluster": "tcp://elsewhere:8786"}  # of which nothing is known
    assert notes("bfloat16", native=False, **cluster) == []


def test_a_missing_optimizer_is_found_early(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = rewrite(write_run(tmp_path), {"surrogate": {"optimizer": "adamw_8bit"}})
    monkeypatch.setattr(training, "find_spec", lambda _: None)
    (mistake,) = find_mistakes(load_config(str(path)))
    assert "surrogate.optimizer: adamw_8bit" in str(mistake)
    assert "albat[optimizers]" in mistake.remedy


def test_that_a_corpus_which_is_not_embedded_has_copies_told_by_words_is_said(
    tmp_path: Path,
) -> None:
    whole = {"retrieval": {"pool": "corpus"}, "selection": {"rows": 20, "select": "top"}}
    path = write_run(tmp_path, **whole)
    for copies, count in (({}, 1), ({"similarity": None}, 0), ({"enabled": False}, 0)):
        told: list[str] = []
        config = load_config(str(rewrite(path, {"decontamination": copies})))
        assert find_mistakes(config, warn=told.append) == []
        assert len(told) == count
        assert all("decontamination.similarity is not looked at" in note for note in told)


def test_a_chat_model_that_is_to_write_freely_is_told_of_its_template(tmp_path: Path) -> None:
    path = write_run(tmp_path)
    for freely, count in ((False, 0), (True, 1), ("chat", 0)):
        told: list[str] = []
        config = load_config(str(rewrite(path, {"generated": {"freely": freely}})))
        assert find_mistakes(config, warn=told.append) == []
        assert len(told) == count
        assert all("`freely: chat` begins by it" in note for note in told)
    for file in (tmp_path / "backbone").glob("chat_template*"):
        file.unlink()
    [error] = find_mistakes(config)
    assert str(error).count("generated: ")
    assert "expected a chat template" in error.message


def test_few_photographs_are_told_the_split_that_takes_them(tmp_path: Path) -> None:
    path = write_run(tmp_path)
    write_jsonl(tmp_path / "few.jsonl", topic_rows("plants", 3))
    changes = {"adaptation": {"path": "few.jsonl"}, "split": {}}
    (mistake,) = find_mistakes(load_config(str(rewrite(path, changes))))
    assert "set split.folds to 2" in mistake.remedy
    assert find_mistakes(load_config(str(rewrite(path, {"split": {"folds": 2}})))) == []


def test_prompts_that_hardly_say_what_was_meant_are_told(tmp_path: Path) -> None:
    path = write_image_run(tmp_path)
    samples = {"prompts": ["a photo of {token} dog"], "subject": "sks dog"}
    rewrite(path, {"samples": samples})
    braces, subject = checks._odd_prompts(load_config(str(path)))
    assert "'a photo of {token} dog' reaches the backbone as it is" in braces
    assert subject.startswith("samples.subject: it stands in the prompts of samples.dreambooth")
    rewrite(path, {"samples": samples | {"prompts": ["a dog"], "dreambooth": "live"}})
    assert list(checks._odd_prompts(load_config(str(path)))) == []
