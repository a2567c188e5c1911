"""How far a corpus is from what the backbone models."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from albat_core.backbones import open_backbone
from albat_core.backbones.base import Losses
from albat_core.backbones.config import BackboneConfig, SamplingConfig
from albat_core.backbones.language.tokens import TextEncoder
from albat_core.errors import BackboneError, InputError
from albat_core.records.examples import GENERATED
from albat_core.records.shards import parts_of
from albat_core.records.tables import read_table
from albat_core.report.content import Interval
from albat_core.runs.chain import Chain
from albat_core.runs.config import RunConfig
from albat_core.seeding import numpy_generator
from albat_core.stages.encode import encode_part
from albat_core.stages.generate import GenerationConfig, generate_rows
from albat_core.stages.proxy import LOSSES, PROXY_SCHEMA, ProxyConfig, measure_proxy
from albat_core.stages.report import read_results
from albat_core.store.artifacts import ArtifactRef, ArtifactStore, Built
from albat_core.store.stage import Runtime
from tests.pipelines import save_pipeline
from tests.toys import topic_rows

Cut = Callable[..., ArtifactRef]
WRITTEN = GenerationConfig(rows=100, sampling=SamplingConfig(max_new_tokens=16))


@pytest.fixture
def sure(backbone_folder: Path, tmp_path: Path) -> BackboneConfig:
    """A copy of the backbone that is surer of what it says, so that not all rows are alike."""
    folder = shutil.copytree(backbone_folder, tmp_path / "sure")
    tensors = load_file(folder / "model.safetensors")
    tensors["model.norm.weight"] *= 15
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return BackboneConfig(path=str(folder), max_length=64, dtype="float32")


def facts_and_rows(ref: ArtifactRef, runtime: Runtime) -> tuple[dict[str, Any], list[dict]]:
    store = ArtifactStore(runtime.root)
    table = read_table(store.folder(ref) / LOSSES)
    assert table.schema == PROXY_SCHEMA
    return store.manifest(ref).facts, table.to_pylist()


def resampled(rows: list[dict], origin: str, seed: int) -> np.ndarray:
    """Losses of bootstrap samples of documents."""
    by_document: dict[str, list[float]] = {}
    for row in rows:
        loss, units = by_document.get(row["document"], [0.0, 0.0])
        by_document[row["document"]] = [loss + row["loss"], units + row["units"]]
    sums = np.array([by_document[name] for name in sorted(by_document)])
    generator = numpy_generator(seed, "bootstrap", origin)
    drawn = generator.integers(0, len(sums), size=(2000, len(sums)))
    return sums[drawn, 0].sum(axis=1) / sums[drawn, 1].sum(axis=1)


def test_losses_are_the_untouched_backbone_s_and_the_distance_their_difference(
    sure: BackboneConfig, cut: Cut, runtime: Runtime
) -> None:
    corpus = [cut("a", topic_rows("plants", 30)), cut("b", topic_rows("ships", 20))]
    few = GenerationConfig(rows=30, sampling=SamplingConfig(max_new_tokens=3))
    generated = generate_rows(sure, few, 0, runtime)
    config = ProxyConfig(rows=40)
    ref = measure_proxy(corpus, generated, [], sure, config, 7, runtime)
    facts, rows = facts_and_rows(ref, runtime)
    by_origin = {o: [r for r in rows if r["origin"] == o] for o in ("corpus", "generated")}
    assert facts["rows"] == len(by_origin["corpus"]) == 40
    assert len(rows) == ArtifactStore(runtime.root).manifest(ref).rows
    assert facts["unit"] == "nats per token"
    means = {
        o: sum(r["loss"] for r in s) / sum(r["units"] for r in s) for o, s in by_origin.items()
    }
    assert facts["corpus_loss"] == pytest.approx(means["corpus"])
    assert facts["generated_loss"] == pytest.approx(means["generated"])
    assert facts["distance"] == pytest.approx(means["corpus"] - means["generated"])
    samples = [resampled(by_origin[o], o, 7) for o in ("corpus", "generated")]
    low, high = np.quantile(samples[0] - samples[1], [0.025, 0.975])
    assert [facts["low"], facts["high"]] == pytest.approx([low, high])
    # as transformers computes them, of as many tokens as the longest row written has
    longest = max(r["units"] for r in by_origin["generated"])
    plain = AutoModelForCausalLM.from_pretrained(sure.path)
    texts = {r["id"]: r["text"] for topic in ("plants", "ships") for r in topic_rows(topic, 30)}
    counts = []
    for row in by_origin["corpus"]:
        ids = [*TextEncoder(sure).tokenizer(texts[row["example_id"]])["input_ids"], 1]
        counts.append(len(ids) - 1)
        ids = ids[: longest + 1]
        with torch.no_grad():
            loss = float(plain(input_ids=torch.tensor([ids]), labels=torch.tensor([ids])).loss)
        assert row["units"] == len(ids) - 1
        assert row["loss"] / row["units"] == pytest.approx(loss, rel=1e-4)
    assert max(counts) > longest


def test_what_the_backbone_writes_is_near_and_what_it_does_not_know_is_far(
    sure: BackboneConfig, cut: Cut, runtime: Runtime
) -> None:
    generated, again = (generate_rows(sure, WRITTEN, seed, runtime) for seed in (0, 1))
    strange = cut("strange", topic_rows("stars", 60))
    near, far = (
        facts_and_rows(measure_proxy([c], generated, [], sure, ProxyConfig(), 0, runtime), runtime)
        for c in (again, strange)
    )
    assert near[0]["low"] < near[0]["distance"] < near[0]["high"]
    assert near[0]["low"] < 0.3
    assert near[0]["high"] > -0.3
    assert far[0]["low"] > near[0]["high"] + 1
    assert far[0]["distance"] > 3
    assert near[0]["rows"] == ArtifactStore(runtime.root).manifest(again).rows  # all there are


def test_rows_are_drawn_evenly_from_all_shards_and_each_once(
    backbone_config: BackboneConfig, cut: Cut, runtime: Runtime
) -> None:
    corpus = [cut(t, topic_rows(t, n)) for t, n in (("plants", 60), ("ships", 20), ("stars", 40))]
    generated = generate_rows(backbone_config, GenerationConfig(rows=2), 0, runtime)

    def drawn(seed: int, count: int = 30) -> list[str]:
        config = ProxyConfig(rows=count)
        ref = measure_proxy(corpus, generated, [], backbone_config, config, seed, runtime)
        _, rows = facts_and_rows(ref, runtime)
        return [r["example_id"] for r in rows if r["origin"] == "corpus"]

    draws = [drawn(seed) for seed in range(12)]
    assert all(len(set(names)) == 30 for names in draws)
    assert len({tuple(names) for names in draws}) == 12
    names = [name for names in draws for name in names]
    shares = [sum(n.startswith(t) for n in names) / 360 for t in ("plants", "ships", "stars")]
    assert shares == pytest.approx([1 / 2, 1 / 6, 1 / 3], abs=0.08)
    assert len(set(names)) > 100
    assert len(set(drawn(0, 1000))) == 120


def test_prompts_of_rows_that_were_written_carry_no_loss(
    sure: BackboneConfig, cut: Cut, runtime: Runtime
) -> None:
    corpus = [cut("plants", topic_rows("plants", 10))]
    prompted = WRITTEN.model_copy(update={"prompts": ("leaf root seed stem bloom",), "rows": 10})
    generated = generate_rows(sure, prompted, 0, runtime)
    _, rows = facts_and_rows(
        measure_proxy(corpus, generated, [], sure, ProxyConfig(), 0, runtime), runtime
    )
    own = {r["example_id"]: r for r in rows if r["origin"] == "generated"}
    encoder = TextEncoder(sure)
    with open_backbone(sure, runtime) as backbone:
        store = ArtifactStore(runtime.root)
        table = read_table(store.folder(generated) / "part-00000.parquet")
        for name, text in zip(*(table[c].to_pylist() for c in ("example_id", "text")), strict=True):
            whole = len(encoder.tokenizer(text)["input_ids"])
            assert own[name]["units"] <= whole - 4
    assert backbone.adapter_parameters() == {}


def test_only_the_first_units_count() -> None:
    each = torch.tensor([[1.0, 2.0, 4.0, 8.0], [1.0, 2.0, 4.0, 8.0]])
    mask = torch.tensor([[False, True, True, True], [True, False, False, False]])
    first = Losses(each, mask).first(2)
    assert first.total.tolist() == [6.0, 1.0]
    assert first.units.tolist() == [2, 1]


def test_pictures_are_measured_at_their_own_unit(tmp_path: Path, runtime: Runtime) -> None:
    config = BackboneConfig(
        kind="diffusion",
        path=str(save_pipeline(tmp_path / "sd")),
        dtype="float32",
        diffusion={"picture": {"resolution": 16}},
    )
    made = [
        generate_rows(
            config, GenerationConfig(prompts=(p,), rows=3, sampling={"steps": 2}), 0, runtime
        )
        for p in ("a cat", "a dog")
    ]
    parts = parts_of(ArtifactStore(runtime.root), made)
    encodings = [encode_part(part, "", config, runtime) for part in parts]
    settings = ProxyConfig(noise_levels=4)
    with_encodings = measure_proxy(made[:1], made[1], encodings, config, settings, 0, runtime)
    facts, rows = facts_and_rows(with_encodings, runtime)
    assert "squared error" in facts["unit"]
    assert [r["units"] for r in rows] == [4] * 6
    assert facts["corpus_loss"] > 0


def test_a_corpus_without_rows_is_refused(
    backbone_config: BackboneConfig, runtime: Runtime
) -> None:
    store = ArtifactStore(runtime.root)
    empty = store.produce("shards", 1, {}, {}, lambda _: Built(rows=0, facts={"parts": []}))
    generated = generate_rows(backbone_config, GenerationConfig(rows=1), 0, runtime)
    with pytest.raises(InputError, match="expected corpus rows") as caught:
        measure_proxy([empty], generated, [], backbone_config, ProxyConfig(), 0, runtime)
    assert (caught.value.where, bool(caught.value.remedy)) == ("corpus", True)


def test_losses_that_are_not_finite_are_refused(
    sure: BackboneConfig, cut: Cut, runtime: Runtime
) -> None:
    corpus = [cut("plants", topic_rows("plants", 4))]
    generated = generate_rows(sure, GenerationConfig(rows=2), 0, runtime)
    path = Path(sure.path) / "model.safetensors"
    tensors = load_file(path)
    tensors["model.norm.weight"] *= torch.nan
    save_file(tensors, path, {"format": "pt"})
    with pytest.raises(BackboneError, match="expected finite losses") as caught:
        measure_proxy(corpus, generated, [], sure, ProxyConfig(), 0, runtime)
    assert caught.value.where.startswith("example generated by the backbone/0")


def test_the_report_tells_how_far_the_corpus_is_and_what_was_generated(
    run_config: RunConfig, store: ArtifactStore
) -> None:
    generated = run_config.generated.model_copy(update={"freely": True, "rows": 8})
    proxy = ProxyConfig(enabled=True, rows=30)
    chain = Chain(run_config.model_copy(update={"generated": generated, "proxy": proxy}))
    content = read_results(store, chain.report)
    assert chain.proxy is not None
    facts = chain.facts(chain.proxy)
    assert content.proxy == Interval(value=facts["distance"], low=facts["low"], high=facts["high"])
    roles = {entry.name: entry.role for entry in content.inputs}
    assert roles == {
        "plants.jsonl": "corpus",
        "ships.jsonl": "corpus",
        "adaptation.jsonl": "adaptation",
        GENERATED: "generated",
    }
