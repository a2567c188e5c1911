"""A look at what a run is worth, before it is paid for."""

from itertools import chain

from albat_core.runs.config import RunConfig
from albat_core.scorers.nearest import Nearest
from albat_core.sources.config import SourceConfig
from albat_core.sources.files import find_files
from albat_core.sources.rows import is_used, read_rows

PART = 0.1
"""Share of the corpus, and of the rows selected from it, that a quick look reads."""
_FEWEST = 4  # documents of a part that says something of its source


def quick_look(config: RunConfig) -> RunConfig:
    """Return a run that reaches a verdict sooner, and trains nothing.

    How long that takes, and how often it is right, is in docs/calibration.md. It searches a tenth
    of each corpus source for a tenth of the rows, the nearest ones, and looks at gradients of the
    untouched backbone. Rows count as what they stand for. Where there is no tenth, as of rows that
    the backbone makes, it selects as many as the run.

    Raises:
        InputError: a file of the corpus, or one of its rows, cannot be used.
    """
    corpus, rows = tuple(map(_part, config.corpus)), config.selection.rows
    if corpus != config.corpus:
        rows = min(max(round(rows * PART), 16), rows)
    return config.model_copy(
        update={
            "corpus": corpus,
            # its index of a part is none for the run to go on from
            "index": config.index.model_copy(update={"grow": False}),
            "decontamination": config.decontamination.model_copy(update={"similarity": None}),
            "retrieval": config.retrieval.model_copy(
                update={"pool": "neighbours", "candidates": rows}
            ),
            "scoring": config.scoring.model_copy(update={"scorer": Nearest()}),
            "selection": config.selection.model_copy(
                update={"rows": rows, "select": "turns", "weigh": "even"}
            ),
            "estimate": config.estimate.model_copy(
                update={
                    "at": "start",
                    "rows": min(config.estimate.rows, rows),
                    "stands_for": config.selection.rows / rows,
                }
            ),
        }
    )


def _part(source: SourceConfig) -> SourceConfig:
    """Return a tenth of a source's documents, or all where so few are in it: there may be none."""
    part = source.model_copy(update={"share": source.share * PART})
    documents: set[str] = set()
    for row in chain.from_iterable(map(read_rows, find_files(part))):
        if is_used(row, part):
            documents.add(row.document)
        if len(documents) == _FEWEST:
            return part
    return source
