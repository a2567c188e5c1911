"""Gradients that were taken before, which need not be taken again."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from albat_core.measures.theory import Floats
from albat_core.records.examples import Example
from albat_core.records.tables import read_table, write_table
from albat_core.store.artifacts import ArtifactRef, ArtifactStore

if TYPE_CHECKING:
    from albat_core.measures.gradients import AdapterGradients

GRADIENTS = "gradients.parquet"
LABEL = "gradients"
"""Of the progress line."""

Gradient = NDArray[np.float32]
"""Of one example, (k,)."""


class KnownGradients:
    """Gradients by adapter and example, those of earlier artifacts to begin with.

    Args:
        store: where those are.
        earlier: estimates, or gradients at folds.
        how: settings by which gradients are taken, ``dimension`` among them; those that were taken
            otherwise are not of use.
    """

    def __init__(
        self, store: ArtifactStore, earlier: Sequence[ArtifactRef], how: Mapping[str, Any]
    ) -> None:
        self._dimension: int = how["dimension"]
        self._earlier: dict[tuple[str, str], Gradient] = {}
        self._used: dict[tuple[str, str], Gradient] = {}
        for ref in earlier:
            taken = store.manifest(ref).config
            if any(taken[name] != value for name, value in how.items()):
                continue
            table = read_table(store.folder(ref) / GRADIENTS)
            values = table["gradient"].combine_chunks().flatten().to_numpy()
            names = zip(table["adapter"].to_pylist(), table["example"].to_pylist(), strict=True)
            self._earlier |= dict(zip(names, values.reshape(-1, self._dimension), strict=True))

    def at(
        self, adapter: str, gradients: AdapterGradients | None = None
    ) -> Callable[[Sequence[Example]], Floats]:
        """Return what gives the gradients of examples, (n, k), at an adapter.

        Args:
            adapter: its key.
            gradients: takes those that are not known, at the adapter that is attached; None: all
                are known.
        """

        def of(examples: Sequence[Example]) -> Floats:
            names = [(adapter, example.digest()) for example in examples]
            there = self._earlier | self._used
            new = {n: e for n, e in zip(names, examples, strict=True) if n not in there}
            if new:
                assert gradients is not None  # all are known, where there is nothing to take them
                there |= dict(zip(new, gradients.of(list(new.values()), LABEL), strict=True))
            self._used |= {name: there[name] for name in names}
            return np.array([there[name] for name in names], dtype=np.float64)

        return of

    def write(self, folder: Path) -> None:
        """Write those that were asked for."""
        values = np.concatenate([np.zeros(0, np.float32), *self._used.values()])
        table = pa.table(
            {
                "adapter": [adapter for adapter, _ in self._used],
                "example": [example for _, example in self._used],
                "gradient": pa.FixedSizeListArray.from_arrays(values, self._dimension),
            }
        )
        write_table(table, folder / GRADIENTS)
