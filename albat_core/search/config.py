"""How the corpus is searched: settings of the index, and what FAISS is to make of them."""

import math
from typing import Literal

from pydantic import Field

from albat_core.store.stage import StageConfig

_FEWEST_FOR_CODES = 16  # centroids of a code of 4 bits
_MANY_CELLS = 4096  # that a graph finds faster than a comparison with each


class IndexConfig(StageConfig):
    """How the corpus is searched."""

    kind: Literal["auto", "flat", "ivf", "ivfpq"] = "auto"
    """`flat` is exact; `ivf` looks into some cells; `ivfpq` compresses too; `auto` chooses by rows
    and memory."""
    memory_gb: float = Field(4.0, gt=0)
    """Memory the index may take, in GB; `auto` compresses what would not fit."""
    exact_rows: int = Field(200_000, ge=1)
    """Up to so many rows `auto` searches exactly."""
    cells: int | None = Field(None, ge=1)
    """Cells of ivf and ivfpq; none: 4 sqrt(rows), at most one for 39 rows."""
    probes: int | None = Field(None, ge=1)
    """Cells looked into per query; none: so many that `least_recall` is surely reached."""
    least_recall: float = Field(0.95, gt=0, le=1)
    """Recall@k, in (0, 1], that `probes` are chosen for, and how many neighbours by codes of ivfpq
    are compared exactly."""
    code_bytes: int = Field(32, ge=1)
    """Bytes per vector of ivfpq; lowered to divide the dimension."""
    shrinkage: float = Field(0.1, gt=0, le=1)
    """Whitening: share of the mean variance added to each direction's, in (0, 1]; more trusts the
    corpus's covariance less."""
    recall_k: int = Field(10, ge=1)
    """k of the recall@k that is measured against exact search."""
    recall_sample: int = Field(256, ge=1)
    """Corpus rows used as queries to measure it; what they find of themselves does not count."""
    grow: bool = False
    """Go on from the last index of this run's name where the corpus has only grown: new rows are
    added to the space and cells there are, until there are twice as many or they differ. What is
    found then depends on what came first."""


def choose_kind(rows: int, dimension: int, config: IndexConfig) -> str:
    """Return `flat`, `ivf` or `ivfpq`: as configured, or by rows and memory.

    Too few rows to learn codes from are always searched exactly.
    """
    if rows < _FEWEST_FOR_CODES:
        return "flat"
    if config.kind != "auto":
        return config.kind
    fits = rows * dimension * 4 <= config.memory_gb * 1e9
    if rows <= config.exact_rows and fits:
        return "flat"
    return "ivf" if fits else "ivfpq"


def factory_of(
    kind: str, rows: int, dimension: int, config: IndexConfig, *, graph: bool
) -> tuple[str, int]:
    """Return the FAISS factory string and the number of cells (0: none).

    Args:
        kind: `flat`, `ivf` or `ivfpq`.
        rows: of the corpus.
        dimension: of the vectors.
        config: the rest.
        graph: whether many cells are found by a graph.
    """
    if kind == "flat":
        return "Flat", 0
    # FAISS wants some 39 training vectors a cell
    cells = min(config.cells or min(round(4 * math.sqrt(rows)), max(rows // 39, 1)), rows)
    lists = f"IVF{cells}_HNSW32" if graph and cells >= _MANY_CELLS else f"IVF{cells}"
    if kind == "ivf":
        return f"{lists},Flat", cells
    code = max(m for m in range(1, min(config.code_bytes, dimension) + 1) if dimension % m == 0)
    bits = 8 if rows >= 256 * 39 else 4
    # np: numbers of codes are not annealed for Hamming distances, which nothing here compares
    return f"{lists},PQ{code}x{bits}np", cells
