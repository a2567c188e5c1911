"""Scores of candidates."""

import numpy as np
import pytest

from albat_core.artifacts import ArtifactStore
from albat_core.backbones import open_backbone
from albat_core.backbones.base import adapted
from albat_core.chain import Chain
from albat_core.config import RunConfig
from albat_core.records import read_table
from albat_core.scoring import SCORES, ScoringConfig, score_candidates
from albat_core.shards import read_rows


def test_advantage_is_what_the_surrogate_gains_per_token(
    chain: Chain, store: ArtifactStore, run_config: RunConfig
) -> None:
    table = read_table(store.folder(chain.scores) / SCORES).to_pydict()
    examples = read_rows(store, table["shard"], table["row"])
    losses = []
    for adapter in (None, store.folder(chain.surrogate)):
        with (
            open_backbone(run_config.backbone, run_config.runtime) as backbone,
            adapted(backbone, adapter) as opened,
        ):
            one_by_one = [opened.losses(opened.encode([e])) for e in examples]
            losses.append([float(one.mean.detach()) for one in one_by_one])
    np.testing.assert_allclose(table["loss_backbone"], losses[0], atol=1e-4)
    np.testing.assert_allclose(table["loss_surrogate"], losses[1], atol=1e-4)
    np.testing.assert_allclose(table["score"], np.subtract(*losses), atol=1e-4)
    assert np.std(table["score"]) > 1e-3


def test_candidates_of_the_target_s_topic_score_higher(chain: Chain, store: ArtifactStore) -> None:
    table = read_table(store.folder(chain.scores) / SCORES).to_pydict()
    by_topic: dict[str, list[float]] = {}
    for name, score in zip(table["example_id"], table["score"], strict=True):
        by_topic.setdefault(name.partition("-")[0], []).append(score)
    assert np.mean(by_topic["plants"]) > np.mean(by_topic.get("ships", [-1.0]))


def test_nearest_scores_by_similarity(
    chain: Chain, store: ArtifactStore, run_config: RunConfig
) -> None:
    ref = score_candidates(
        chain.candidates,
        chain.surrogate,
        [],
        run_config.backbone,
        ScoringConfig(scorer="nearest"),
        run_config.runtime,
    )
    table = read_table(store.folder(ref) / SCORES)
    assert table["score"].to_pylist() == pytest.approx(table["similarity"].to_pylist())
    assert table["loss_backbone"].null_count == table.num_rows
