"""Selection and weights: which candidates go into the mixture, and how much each counts."""

from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import Field

from albat_core.errors import ConfigError
from albat_core.measures.discounts import discounted
from albat_core.measures.weights import Floats, effective_sample_size, exponential_weights
from albat_core.records.candidates import CANDIDATE_SCHEMA, read_candidates, read_neighbours
from albat_core.records.scores import SCORE_SCHEMA, read_scores
from albat_core.records.selections import SELECTION, SELECTION_SCHEMA, STAGE
from albat_core.records.tables import write_table
from albat_core.seeding import numpy_generator
from albat_core.store.artifacts import ArtifactRef, ArtifactStore, Built
from albat_core.store.stage import Runtime, StageConfig

STAGE_VERSION = 2


class SelectionConfig(StageConfig):
    """Which candidates are selected, and how much each counts."""

    rows: int = Field(4000, ge=1)
    """Backbone rows selected at most."""
    select: Literal["turns", "top", "sources", "gumbel"] = "turns"
    """`turns`: each adaptation example in turn takes its best-scored neighbour, so that all are
    served where `rows` suffice; `top`: the best scores, whoever they serve; `sources`: all of the
    source with the best mean score, then of the next, where a source is of one hand, as an artist
    or a typeface; `gumbel`: drawn without replacement with chances that grow as
    exp(score / temperature)."""
    temperature: float | None = Field(None, gt=0)
    """Temperature of `gumbel`, in units of the score; none: the one at which the chances have an
    effective sample size of `rows`."""
    weigh: Literal["exponential", "even", "proportional"] = "exponential"
    """Weights of the rows selected: `exponential`: exp(score / tau), tau as `ess` asks; `even`: all
    the same; `proportional`: as the score, where that is a weight (scorer `matching`)."""
    ess: float = Field(0.9, gt=0, le=1)
    """Effective sample size of exponential weights over the rows selected, in (0, 1]."""


def best_by_turns(
    queries: NDArray[np.int64], candidates: NDArray[np.int64], scores: Floats, limit: int
) -> list[int]:
    """Let each query in turn take its best-scored neighbour that none has taken.

    Where there are fewer turns than queries, those go first whose best neighbour scores best, and
    one whose best is taken is served by it.

    Args:
        queries: (n_pairs,) int64, query of each neighbour pair.
        candidates: (n_pairs,) int64, candidate of each pair.
        scores: (n_candidates,).
        limit: candidates to take at most.

    Returns:
        candidates taken, in order.
    """
    order = np.lexsort((candidates, -scores[candidates], queries))
    lists: list[list[int]] = []
    last = -1
    for pair in order:
        if queries[pair] != last:
            lists.append([])
            last = queries[pair]
        lists[-1].append(int(candidates[pair]))
    taken: dict[int, None] = {}
    if len(lists) > limit:
        lists.sort(key=lambda row: -scores[row[0]])
        best = dict.fromkeys(row[0] for row in lists)
        taken = dict.fromkeys([*best][:limit])
    queues = [iter(row) for row in lists]
    while queues and len(taken) < limit:
        alive = []
        for queue in queues:
            pick = next((c for c in queue if c not in taken), None)
            if pick is None:
                continue
            if len(taken) < limit:
                taken[pick] = None
            alive.append(queue)
        queues = alive
    return list(taken)


def best_by_source(scores: Floats, sources: NDArray[np.str_], limit: int) -> list[int]:
    """Take the candidates of whole sources, those of the best mean score first.

    A mean over few rows says little, and is drawn to the mean of all as far (``discounted``).

    Args:
        scores: (n,), higher is better.
        sources: (n,) of each candidate.
        limit: candidates to take at most.

    Returns:
        candidates taken: source by source, of each the best-scored first.
    """
    _, which, counts = np.unique(sources, return_inverse=True, return_counts=True)
    means = np.bincount(which, scores) / counts
    within = np.square(scores - means[which]).sum() / max(len(scores) - len(counts), 1)
    means = discounted(means, np.sqrt(within / counts), "shrinkage")
    order = np.lexsort((-scores, which, -means[which]))
    return [int(row) for row in order[:limit]]


def gumbel_top(scores: Floats, count: int, temperature: float | None, seed: int) -> list[int]:
    """Draw candidates without replacement with chances as exp(score / temperature).

    The highest of score / temperature + Gumbel noise are such a draw (arXiv 1903.06059).

    Args:
        scores: (n,), higher is better.
        count: candidates drawn at most.
        temperature: > 0; None: the one at which the chances' effective sample size is ``count``.
        seed: of the noise.

    Returns:
        positions drawn, the first first.
    """
    if temperature is None:
        _, temperature = exponential_weights(scores, min(count / len(scores), 1))
    noise = numpy_generator(seed, "gumbel").gumbel(size=len(scores))
    order = np.argsort(-(scores / temperature + noise), kind="stable")
    return [int(row) for row in order[:count]]


def weights_of(scores: Floats, config: SelectionConfig) -> tuple[Floats, float]:
    """Return the weights (n,) of selected rows, which sum to 1, and tau; infinite without one.

    Raises:
        ConfigError: weights as the score are asked for, and one is negative or all are 0.
    """
    if config.weigh == "even":
        return np.full(len(scores), 1 / len(scores)), np.inf
    if config.weigh == "exponential":
        return exponential_weights(scores, config.ess)
    if scores.min() < 0 or scores.max() == 0:
        raise ConfigError(
            f"expected scores >= 0 with one above 0, got {scores.min():.3g} to {scores.max():.3g}",
            where="selection.weigh",
            remedy="set it to exponential, or scoring.scorer to matching",
        )
    return scores / scores.sum(), np.inf


def select(
    candidates: ArtifactRef,
    scores: ArtifactRef,
    config: SelectionConfig,
    seed: int,
    runtime: Runtime,
) -> ArtifactRef:
    """Choose among scored candidates and weigh them; alpha plays no part yet.

    Raises:
        ConfigError: turns are asked for where candidates are no neighbours, or weights as scores
            that are none.
    """
    store = ArtifactStore(runtime.root)

    def build(folder: Path) -> Built:
        table = read_scores(store, scores)
        values = table["score"].to_numpy().astype(np.float64)
        if config.select == "turns":
            pairs = read_neighbours(store, candidates)
            if not pairs.num_rows:
                raise ConfigError(
                    "expected neighbours of adaptation examples, which take turns, got none",
                    where="selection.select",
                    remedy="set it to top, sources or gumbel, or retrieval.pool to neighbours",
                )
            queries = pairs["query"].combine_chunks().dictionary_encode().indices.to_numpy()
            chosen = best_by_turns(
                queries.astype(np.int64), pairs["candidate"].to_numpy(), values, config.rows
            )
        elif config.select == "sources":
            sources = np.array(table["source"].to_pylist())
            chosen = best_by_source(values, sources, config.rows)
        elif config.select == "gumbel":
            chosen = gumbel_top(values, config.rows, config.temperature, seed)
        else:
            chosen = np.argsort(-values, kind="stable")[: config.rows].tolist()
        if config.weigh == "proportional":  # a row without weight is none
            chosen = [row for row in chosen if values[row] != 0] or chosen
        weights, tau = weights_of(values[chosen], config)
        facts = {"tau": tau, "wanted": config.rows, "lacking": config.rows - len(chosen)}
        return _write(table.take(pa.array(chosen)), weights, facts, folder)

    draws = config.select == "gumbel"
    settings = config.settings(seed=seed) if draws else config.settings()
    inputs = {"candidates": candidates.key, "scores": scores.key}
    return store.produce(STAGE, STAGE_VERSION, settings, inputs, build)


def select_all(
    candidates: ArtifactRef, runtime: Runtime, like: ArtifactRef | None = None
) -> ArtifactRef:
    """Take every candidate with the same weight, for baselines.

    Args:
        candidates: what to take.
        runtime: where.
        like: take the first candidates only, as many as this selection has.
    """
    store = ArtifactStore(runtime.root)
    rows = store.manifest(like).rows if like else None

    def build(folder: Path) -> Built:
        table = read_candidates(store, candidates)[:rows]
        for field in list(SCORE_SCHEMA)[len(CANDIDATE_SCHEMA) :]:
            table = table.append_column(field, pa.nulls(table.num_rows, field.type))
        return _write(table, np.full(table.num_rows, 1 / table.num_rows), {}, folder)

    settings = {"rows": rows} if rows else {}
    return store.produce(STAGE, STAGE_VERSION, settings, {"candidates": candidates.key}, build)


def _write(chosen: pa.Table, weights: Floats, facts: dict[str, float], folder: Path) -> Built:
    chosen = chosen.append_column(SELECTION_SCHEMA.field("weight"), pa.array(weights))
    write_table(chosen.cast(SELECTION_SCHEMA), folder / SELECTION)
    finite = {name: value for name, value in facts.items() if np.isfinite(value)}
    ess = effective_sample_size(weights)
    return Built(rows=chosen.num_rows, facts=finite | {"effective_sample_size": ess})
