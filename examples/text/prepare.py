"""Write the demo's text data: the pretraining corpus, the held-out part and the adaptation data.

The folder given with --data holds medquad.parquet (id, source, focus, question, answer, url) and
general_text.parquet (id, source, text). Every written file follows from them alone: documents are
divided by a hash of their id, and rows keep the order of the source.
"""

import argparse
import hashlib
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

ADAPTATION_SOURCE = "CancerGov"
COVERED_SOURCE = "MPlus_Health_Topics"  # of the efficacy benchmark: the corpus has more of it
HELD_OUT_SHARE = 0.2
GENERAL = {"addresses": ["state_union", "inaugural"], "wikitext": ["wikitext2"]}


def document_of(row_id):
    """The document of a MedQuAD row, whose id is SITE/DOCUMENT/row."""
    return row_id.rsplit("/", 1)[0]


def rank_of(document):
    """A number that orders documents as if at random, the same on every machine."""
    return hashlib.blake2b(document.encode(), digest_size=8).digest()


def held_out_documents(documents):
    """The share of one site's documents that is kept out of pretraining."""
    # Whole documents, because the rows of one document share text.
    ranked = sorted(set(documents), key=rank_of)
    return set(ranked[: round(len(ranked) * HELD_OUT_SHARE)])


def numbered(row_ids):
    """The ids with every repetition numbered, so that an id names one row."""
    # Two CancerGov documents start counting their rows anew for each disease they treat.
    seen = Counter()
    unique = []
    for row_id in row_ids:
        seen[row_id] += 1
        unique.append(row_id if seen[row_id] == 1 else f"{row_id}.{seen[row_id]}")
    return unique


def read_medquad(path):
    """MedQuAD with its documents, as a table of id, document, source, question, answer."""
    table = pq.read_table(path, columns=["id", "source", "question", "answer"])
    row_ids = table["id"].to_pylist()
    table = table.set_column(0, "id", pa.array(numbered(row_ids)))
    return table.add_column(1, "document", pa.array([document_of(i) for i in row_ids]))


def read_general(path):
    """The general texts, one document a row, as a table of id, document, source, text."""
    table = pq.read_table(path, columns=["id", "source", "text"])
    return table.add_column(1, "document", table["id"])


def write(table, path):
    """Write a table and print its size."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # Without the source's metadata the file depends on its rows only.
    table = table.replace_schema_metadata(None)
    pq.write_table(table, path, compression="zstd", compression_level=19)
    documents = len(set(table["document"].to_pylist()))
    size = path.stat().st_size
    print(f"{path}: {table.num_rows} rows, {documents} documents, {size} bytes")


def main():
    """Write all files."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of the source files")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "data")
    arguments = parser.parse_args()

    medquad = read_medquad(arguments.data / "medquad.parquet")
    sources = medquad["source"].to_pylist()
    documents = medquad["document"].to_pylist()

    held_out = set()
    for site in sorted(set(sources) - {ADAPTATION_SOURCE}):
        of_site = [d for d, s in zip(documents, sources, strict=True) if s == site]
        held_out |= held_out_documents(of_site)
        mask = [s == site and d not in held_out for d, s in zip(documents, sources, strict=True)]
        path = arguments.out / "corpus" / f"medquad-{site}.parquet"
        write(medquad.filter(pa.array(mask)), path)

    general = read_general(arguments.data / "general_text.parquet")
    for name, its in GENERAL.items():
        rows = general.filter(pc.is_in(general["source"], pa.array(its)))
        write(rows, arguments.out / "corpus" / f"general-{name}.parquet")
    rest = medquad.filter(pa.array([d in held_out for d in documents]))
    write(rest, arguments.out / "heldout.parquet")
    of_site = rest.filter(pc.equal(rest["source"], COVERED_SOURCE))
    write(of_site, arguments.out / f"heldout-{COVERED_SOURCE}.parquet")
    write(
        medquad.filter(pa.array([s == ADAPTATION_SOURCE for s in sources])),
        arguments.out / "cancergov.parquet",
    )


if __name__ == "__main__":
    main()
