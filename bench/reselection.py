"""What a re-selection costs when a tenth of the adaptation rows is new, against the first one.

    python -m bench.reselection examples/text/demo.yaml

Both go up to the mixture with a computed alpha. The first starts from nothing; the second finds one
more file of adaptation data.
"""

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from albat_core.records.selections import Selected
from albat_core.runs.chain import Chain
from albat_core.runs.config import RunConfig
from albat_core.seeding import numpy_generator
from albat_core.sources.files import find_files
from albat_core.store.artifacts import ArtifactStore
from flows.config import load_config

NEW = 0.1
"""Rows added, as a share of those that are there."""


def divided(config: RunConfig) -> tuple[pa.Table, pa.Table]:
    """Return the rows of as many documents as the run would use, and of some that come later."""
    [source] = config.adaptation
    [file] = find_files(source)
    table = pq.read_table(file.uris[0])
    documents = table[source.document_column]
    names = numpy_generator(0, "documents").permutation(sorted(set(documents.to_pylist())))
    rows = np.cumsum([pc.sum(pc.equal(documents, name)).as_py() for name in names])
    first = int(np.searchsorted(rows, config.split.use * rows[-1])) + 1
    last = int(np.searchsorted(rows, (1 + NEW) * rows[first - 1])) + 1
    early, late = (
        table.filter(pc.is_in(documents, pa.array(part.tolist())))
        for part in (names[:first], names[first:last])
    )
    return early, late


def run_on(folder: Path, config: RunConfig, root: str) -> RunConfig:
    """Return a run that uses all the rows in a folder, with a computed alpha."""
    [source] = config.adaptation
    return config.model_copy(
        update={
            "adaptation": (source.model_copy(update={"path": str(folder)}),),
            "split": config.split.model_copy(update={"use": 1.0}),
            "mixture": config.mixture.model_copy(update={"alpha": "auto"}),
            "runtime": config.runtime.model_copy(update={"root": root}),
        }
    )


def selected(config: RunConfig, previous: Selected | None) -> tuple[Selected, float]:
    """Select; print what each stage took that was computed, and return the time in all."""
    began = time.perf_counter()
    chain = Chain(config, previous=previous)
    found = chain.selected
    took = time.perf_counter() - began
    store = ArtifactStore(config.runtime.root)
    for stage in chain.stages:
        seconds = sum(store.manifest(ref).seconds for ref in stage.refs if not ref.reused)
        if seconds >= 0.1:
            print(f"  {stage.label}: {seconds:.1f} s")
    print(f"  in all: {took:.1f} s", flush=True)
    return found, took


def main() -> None:
    """Select, add rows, select again."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("config", help="a run whose adaptation data is one Parquet file")
    config = load_config(parser.parse_args().config)
    early, late = divided(config)
    with tempfile.TemporaryDirectory() as root:
        folder = Path(root, "adaptation")
        folder.mkdir()
        pq.write_table(early, folder / "early.parquet")
        run = run_on(folder, config, f"{root}/artifacts")
        print(f"first selection, {early.num_rows} rows")
        first, first_took = selected(run, None)
        pq.write_table(late, folder / "late.parquet")
        print(f"re-selection, {late.num_rows} rows more ({late.num_rows / early.num_rows:.0%})")
        _, again_took = selected(run, first)
    print(f"re-selection against first selection: {again_took / first_took:.1%}")


if __name__ == "__main__":
    main()
