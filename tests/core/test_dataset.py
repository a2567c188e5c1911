"""The weighted mixture as Parquet."""

from pathlib import Path

import pytest

from albat_core.records.examples import EXAMPLE_SCHEMA
from albat_core.records.mixtures import MIXTURE_SCHEMA, read_mixture
from albat_core.records.runs import ADAPTATION_ONLY, ALBAT
from albat_core.records.selections import read_selection
from albat_core.runs.chain import Chain
from albat_core.runs.config import RunConfig
from albat_core.stages.mix import MixtureConfig, write_mixture
from albat_core.store.artifacts import ArtifactStore


def test_opens_with_datasets_and_weights_are_those_of_the_objective(
    chain: Chain, store: ArtifactStore, tmp_path: Path
) -> None:
    datasets = pytest.importorskip("datasets")
    folder = store.folder(chain.arms.mixture(ALBAT))
    rows = datasets.load_dataset(str(folder), split="train", cache_dir=str(tmp_path))
    mixture = read_mixture(store, chain.arms.mixture(ALBAT))
    examples = [*mixture.adaptation, *mixture.backbone]
    absent = {n for n in EXAMPLE_SCHEMA.names if all(getattr(e, n) is None for e in examples)}
    assert rows.column_names == [*(n for n in MIXTURE_SCHEMA.names if n not in absent), "row"]
    own = [w for w, role in zip(rows["weight"], rows["role"], strict=True) if role == "adaptation"]
    other = [w for w, role in zip(rows["weight"], rows["role"], strict=True) if role == "backbone"]
    assert sum(own) == pytest.approx(0.5)
    assert sum(other) == pytest.approx(0.5)
    assert own == pytest.approx([0.5 / len(own)] * len(own))
    chosen = read_selection(store, chain.selection)
    assert rows["example_id"][len(own) :] == chosen["example_id"].to_pylist()
    assert other == pytest.approx((chosen["weight"].to_numpy() / 2).tolist())
    assert all(text for text in rows["text"])


def test_is_read_back_as_two_sums(chain: Chain, store: ArtifactStore) -> None:
    mixture = read_mixture(store, chain.arms.mixture(ALBAT))
    chosen = read_selection(store, chain.selection)
    assert mixture.alpha == 0.5
    assert mixture.weights == pytest.approx(chosen["weight"].to_numpy())
    assert [e.example_id for e in mixture.backbone] == chosen["example_id"].to_pylist()
    alone = read_mixture(store, chain.arms.mixture(ADAPTATION_ONLY))
    assert alone.alpha == 0
    assert list(alone.adaptation) == list(mixture.adaptation)
    assert not alone.backbone


@pytest.mark.parametrize("alpha", [0.0, 0.25])
def test_many_files_hold_the_same_rows(
    chain: Chain, store: ArtifactStore, run_config: RunConfig, alpha: float
) -> None:
    ref = write_mixture(
        chain.inputs.adaptation,
        chain.selection,
        alpha,
        MixtureConfig(shard_rows=7),
        run_config.runtime,
    )
    files = sorted((store.folder(ref) / "data").glob("*.parquet"))
    rows = store.manifest(ref).rows
    assert len(files) == -(-rows // 7)
    mixture = read_mixture(store, ref)
    assert len(mixture.adaptation) + len(mixture.backbone) == rows
    assert mixture.alpha == alpha
    assert bool(mixture.backbone) == (alpha > 0)
    assert f"alpha = {alpha:.3f}" in (store.folder(ref) / "README.md").read_text()
