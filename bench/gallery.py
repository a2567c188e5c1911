"""Pages of the gallery: what three runs of the examples show, as files of docs/gallery/.

    python -m bench.gallery text pictures weeks

Each case is run here, what is finished is found again, and its pages are copied: the text demo, the
picture demo, and one whose adaptation data comes in two parts. That has fewer steps and candidates.
"""

import argparse
import shutil
from pathlib import Path

import pyarrow.parquet as pq

from albat_core.runs.chain import Chain
from albat_core.runs.config import RunConfig
from bench.reselection import divided, run_on
from flows.config import load_config

ROOT = Path(__file__).parent.parent
PAGES = ROOT / "docs" / "gallery"
DEMOS = {"text": "examples/text/demo.yaml", "pictures": "examples/image/demo.yaml"}
LARGEST = 1_500_000
"""Bytes of a page at most: the repository holds it in every version."""


def demo(name: str) -> None:
    """Run a demo as it is."""
    chain = Chain(load_config(str(ROOT / DEMOS[name])))
    keep(name, chain.export()["report"])


def weeks(folder: Path) -> None:
    """Select, add documents to the adaptation data, select again, and train where it is worth it.

    Args:
        folder: where the adaptation data is put.
    """
    base = load_config(str(ROOT / DEMOS["text"]))
    early, late = divided(base)
    run = shortened(run_on(folder, base, base.runtime.root))
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    pq.write_table(early, folder / "early.parquet")
    first = Chain(run).selected
    pq.write_table(late, folder / "late.parquet")
    again = Chain(run, previous=first, trained=first)
    changes = again.changes
    assert changes is not None  # there is a selection to compare with
    keep("changes", again.export_changes(changes)["changes"])
    if again.facts(changes)["worth"]:
        keep("weeks", again.export()["report"])


def shortened(run: RunConfig) -> RunConfig:
    """Return a run with fewer steps and candidates: selecting twice takes a minute or so."""
    training = {"steps": 20}
    return RunConfig.model_validate(
        run.model_dump()
        | {
            "name": "weeks",
            "retrieval": run.retrieval.model_dump() | {"neighbours": 100, "candidates": 1000},
            "selection": run.selection.model_dump() | {"rows": 500},
            "estimate": run.estimate.model_dump() | {"rows": 128, "folds": 2},
            "surrogate": run.surrogate.model_dump() | training,
            "finetune": run.finetune.model_dump() | training,
            "baselines": ["adaptation_only", "random"],
        }
    )


def keep(name: str, page: str) -> None:
    """Copy a page into the gallery, without the place of this clone in it."""
    text = Path(page).read_text("utf-8").replace(f"{ROOT}/", "")
    size = len(text.encode())
    assert size < LARGEST, f"{page} has {size} bytes: a page of the gallery is to be smaller"
    (PAGES / f"{name}.html").write_text(text, "utf-8")
    print(f"docs/gallery/{name}.html: {size / 1000:.0f} KB", flush=True)


def main() -> None:
    """Run the cases that are named."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("cases", nargs="+", choices=[*DEMOS, "weeks"])
    for case in parser.parse_args().cases:
        demo(case) if case in DEMOS else weeks(ROOT / ".albat" / "gallery")


if __name__ == "__main__":
    main()
