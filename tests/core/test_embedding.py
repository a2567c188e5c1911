"""Embeddings: the same one at a time and in batches, and only what is new is computed."""

from pathlib import Path

import numpy as np
import pytest

from albat_core.backbones.config import BackboneConfig
from albat_core.backbones.language.model import LanguageBackbone
from albat_core.errors import BackboneError
from albat_core.records.examples import Example
from albat_core.records.shards import iterate_part, parts_of
from albat_core.records.splits import TEST, TRAIN, VALIDATION, read_role
from albat_core.records.vectors import load_queries, load_vectors
from albat_core.stages import embed as embedding
from albat_core.stages.embed import EmbeddingConfig, embed_examples, embed_part, embed_queries
from albat_core.stages.split import SplitConfig, split_adaptation
from albat_core.store.artifacts import ArtifactRef, ArtifactStore
from albat_core.store.stage import Runtime
from tests.conftest import Cut
from tests.toys import sentences, topic_rows

CONFIG = EmbeddingConfig(batch_tokens=200)


def examples(count: int) -> list[Example]:
    return [Example(f"e{n}", "d", "s", text=t) for n, t in enumerate(sentences("ships", count, 5))]


def test_batches_give_what_rows_give_alone_in_order(backbone: LanguageBackbone) -> None:
    encoded = backbone.encode(examples(20))
    together = embed_examples(backbone, encoded, batch_tokens=100, label="")
    alone = np.stack([backbone.embed([one])[0].numpy() for one in encoded])
    assert together.dtype == np.float32
    np.testing.assert_allclose(together, alone, atol=1e-5)


def test_values_that_are_not_finite_are_refused_with_their_row(
    backbone: LanguageBackbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoded = backbone.encode(examples(4))
    embed = backbone.embed

    def spoilt(batch: list) -> object:
        vectors = embed(batch).clone()
        vectors[[one.example_id == "e2" for one in batch], 3] = float("nan")
        return vectors

    monkeypatch.setattr(backbone, "embed", spoilt)
    with pytest.raises(BackboneError, match="example e2"):
        embed_examples(backbone, encoded, batch_tokens=1000, label="")


def test_a_part_s_embeddings_are_its_rows_in_order(
    cut: Cut, backbone_config: BackboneConfig, runtime: Runtime, backbone: LanguageBackbone
) -> None:
    store = ArtifactStore(runtime.root)
    parts = parts_of(store, [cut("corpus", topic_rows("plants", 40))])
    assert [p.rows for p in parts] == [16, 16, 8]
    for part in parts:
        found = embed_part(part, "", None, backbone_config, CONFIG, runtime)
        rows = [e for block in iterate_part(store, part) for e in block]
        expected = np.stack([backbone.embed(backbone.encode([row]))[0].numpy() for row in rows])
        vectors = load_vectors(store, found.embeddings)
        np.testing.assert_allclose(vectors, expected, atol=1e-5)
        facts = store.manifest(found.embeddings).facts
        assert facts["dimension"] == vectors.shape[1] == 32
        assert facts["passes"] == sum(e.length for e in backbone.encode(rows))


def test_a_part_is_known_by_its_content(
    cut: Cut, backbone_config: BackboneConfig, runtime: Runtime
) -> None:
    store = ArtifactStore(runtime.root)
    rows = topic_rows("plants", 40)
    before = parts_of(store, [cut("corpus", rows)])
    first = [embed_part(p, "", None, backbone_config, CONFIG, runtime) for p in before]
    rows[20]["text"] = "comet planet moon"  # in the second of three parts
    after = parts_of(store, [cut("corpus", rows)])
    assert {p.shards.key for p in after}.isdisjoint(p.shards.key for p in before)
    second = [embed_part(p, "again", None, backbone_config, CONFIG, runtime) for p in after]
    assert [p.reused for p in first + second] == [False] * 3 + [True, False, True]
    assert second[0].embeddings == first[0].embeddings


@pytest.mark.parametrize("change", [{"max_length": 32}, {"dtype": "bfloat16"}], ids=str)
def test_another_backbone_embeds_anew(
    cut: Cut, backbone_config: BackboneConfig, runtime: Runtime, change: dict[str, object]
) -> None:
    (part,) = parts_of(ArtifactStore(runtime.root), [cut("corpus", topic_rows("plants", 4))])
    first = embed_part(part, "", None, backbone_config, CONFIG, runtime)
    other = embed_part(part, "", None, backbone_config.model_copy(update=change), CONFIG, runtime)
    assert not other.reused
    assert other.embeddings != first.embeddings


class Adaptations:
    """Adaptation sets, split and embedded under one root."""

    def __init__(self, cut: Cut, backbone_config: BackboneConfig, root: Path) -> None:
        self._cut, self._config = cut, backbone_config
        self._runtime = Runtime(root=str(root), device="cpu")
        self.store = ArtifactStore(self._runtime.root)

    def embed(
        self, rows: list[dict], roles: tuple[str, ...] = (TRAIN,)
    ) -> tuple[set[str], ArtifactRef]:
        """Return digests of the rows of these roles, and the embeddings."""
        split = self.split(rows)
        queries = embed_queries(split, [], self._config, CONFIG, self._runtime, roles)
        return {e.digest() for role in roles for e in read_role(self.store, split, role)}, queries

    def split(self, rows: list[dict]) -> ArtifactRef:
        shards = self._cut("own", rows, self._runtime)
        return split_adaptation([shards], [], SplitConfig(), 0, self._runtime)

    def facts(self, queries: ArtifactRef) -> tuple[int, int]:
        facts = self.store.manifest(queries).facts
        return facts["embedded_rows"], facts["reused_rows"]


@pytest.fixture
def adaptations(cut: Cut, backbone_config: BackboneConfig, tmp_path: Path) -> Adaptations:
    return Adaptations(cut, backbone_config, tmp_path / "adaptations")


def test_queries_are_the_training_rows_in_order(
    adaptations: Adaptations, backbone: LanguageBackbone
) -> None:
    rows = topic_rows("plants", 40)
    _, queries = adaptations.embed(rows)
    ids, vectors = load_queries(adaptations.store, queries)
    texts = {row["id"]: row["text"] for row in rows}
    expected = [
        backbone.embed(backbone.encode([Example("", "", "", text=texts[name])]))[0] for name in ids
    ]
    assert np.array_equal(vectors, np.stack(expected))


def test_only_rows_that_are_added_are_embedded_and_the_result_is_the_same(
    adaptations: Adaptations,
    cut: Cut,
    backbone_config: BackboneConfig,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rows = topic_rows("plants", 60)
    known, first = adaptations.embed(rows[:40])
    assert adaptations.facts(first) == (len(known), 0)

    computed: list[int] = []
    original = embedding.embed_examples

    def counting(backbone: object, encoded: list, *others: object) -> object:
        computed.append(len(encoded))
        return original(backbone, encoded, *others)

    monkeypatch.setattr(embedding, "embed_examples", counting)
    wanted, second = adaptations.embed(rows)
    assert known & wanted  # else this shows nothing
    assert computed == [len(wanted - known)]
    assert adaptations.facts(second) == (len(wanted - known), len(wanted & known))

    fresh = Adaptations(cut, backbone_config, tmp_path / "fresh")
    _, whole = fresh.embed(rows)
    assert fresh.facts(whole) == (len(wanted), 0)
    assert whole == second
    for of_increment, at_once in zip(
        load_queries(adaptations.store, second), load_queries(fresh.store, whole), strict=True
    ):
        assert np.array_equal(of_increment, at_once)


def test_a_smaller_set_embeds_nothing(adaptations: Adaptations) -> None:
    rows = topic_rows("plants", 60)
    known, _ = adaptations.embed(rows)
    wanted, queries = adaptations.embed(rows[:40])
    assert adaptations.facts(queries) == (len(wanted - known), len(wanted & known))


def test_a_text_that_changes_under_its_id_is_embedded_anew(adaptations: Adaptations) -> None:
    rows = topic_rows("plants", 40)
    known, _ = adaptations.embed(rows)
    for row in rows:
        row["text"] += " star"
    wanted, queries = adaptations.embed(rows)
    assert known.isdisjoint(wanted)
    assert adaptations.facts(queries) == (len(wanted), 0)


def test_a_lost_hint_costs_time_alone(adaptations: Adaptations) -> None:
    rows = topic_rows("plants", 60)
    adaptations.embed(rows[:40])
    for hint in Path(adaptations.store.root).glob("latest/queries/*.json"):
        hint.write_text("{")
    wanted, queries = adaptations.embed(rows)
    assert adaptations.facts(queries) == (len(wanted), 0)


HELD_OUT = (TEST, VALIDATION)


def test_held_out_rows_are_embedded_role_by_role(
    adaptations: Adaptations, backbone: LanguageBackbone
) -> None:
    rows = topic_rows("plants", 40)
    split = adaptations.split(rows)
    test, validation = (read_role(adaptations.store, split, role) for role in HELD_OUT)
    assert test
    assert validation
    _, queries = adaptations.embed(rows, HELD_OUT)
    ids, vectors = load_queries(adaptations.store, queries)
    assert ids == [e.example_id for e in [*test, *validation]]
    alone = [backbone.embed(backbone.encode([e]))[0] for e in [*test, *validation]]
    np.testing.assert_allclose(vectors, np.stack(alone), atol=1e-5)
    assert adaptations.store.manifest(queries).rows == len(alone)
    _, other_way = adaptations.embed(rows, HELD_OUT[::-1])
    assert load_queries(adaptations.store, other_way)[0] == ids[len(test) :] + ids[: len(test)]
    _, trained_on = adaptations.embed(rows)
    assert not set(load_queries(adaptations.store, trained_on)[0]) & set(ids)


def test_held_out_rows_and_training_rows_are_each_reused_by_their_like(
    adaptations: Adaptations,
) -> None:
    rows = topic_rows("plants", 60)
    before = {roles: adaptations.embed(rows[:40], roles)[0] for roles in ((TRAIN,), HELD_OUT)}
    for roles, known in before.items():  # of which the second was embedded last
        wanted, queries = adaptations.embed(rows, roles)
        assert wanted & known  # else this shows nothing
        assert adaptations.facts(queries) == (len(wanted - known), len(wanted & known))
