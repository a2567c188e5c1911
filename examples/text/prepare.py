"""Write the data of the text demo and of the efficacy benchmark for text.

Two folders are given. The one of --data holds medquad.parquet (id, source, focus, question,
answer, url), general_text.parquet and general_more.parquet (id, source, text); that of --fiction
holds novels and stories as NAME.txt, a sentence a line, in tokens of the Penn Treebank behind a
line of title and author. Every written file follows from them alone: documents are drawn by a hash
of their id, and rows keep the order of the source.

No review and no health topic that is adapted to shares a run of 13 words with the corpus; what
other documents have in common with it is printed.
"""

import argparse
import hashlib
import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

HERE = Path(__file__).parent

NEAR = "CancerGov"
QUESTIONS = {"topics": "MPlus_Health_Topics", "ninds": "NINDS"}  # sites in the corpus
OF_A_SITE = 0.2  # of its documents are kept out of pretraining
GENERAL = {"addresses": ("state_union", "inaugural"), "wikitext": ("wikitext2",)}
CORPUS_REVIEWS, ADAPTATION_REVIEWS = 300, 100
REVIEWS_SEED, HELD_OUT_SEED, COLUMNS_SEED = "reviews", "held out", "columns"
COLUMN = 5  # words of a column's line, where pages were read across
HELD_OUT_SHARE = 0.04  # of the documents of a general kind, for the backbone's card
BOOKS = (
    "austen-emma",
    "austen-persuasion",
    "austen-sense",
    "bryant-stories",
    "carroll-alice",
    "chesterton-ball",
    "chesterton-brown",
    "chesterton-thursday",
    "edgeworth-parents",
    "melville-moby_dick",
)
HELD_OUT_BOOK = "carroll-alice"
PART = 10_000  # characters of a book's row
LEFT_OUT = {"masc_debate-transcript"}  # presidents speaking: the task `far` is their addresses
RUN = 13  # words
COLUMNS = ("id", "document", "source", "text", "question", "answer")

Row = dict[str, str]

_DETOKENIZE = [
    (re.compile(r"`` ?"), '"'),
    (re.compile(r" ?''"), '"'),
    (re.compile(r" (n't|'(?:s|m|d|ll|re|ve))\b", re.IGNORECASE), r"\1"),
    (re.compile(r" ([.,;:?!)\]}])"), r"\1"),
    (re.compile(r"([(\[{]) "), r"\1"),
    (re.compile(r"_ ([^_]*?) _"), r"_\1_"),
    (re.compile(r" -- "), "--"),
    (re.compile(r"\s+"), " "),
]


def rank_of(document: str, seed: str = "") -> bytes:
    """A number that orders documents as if at random, the same on every machine."""
    named = f"{seed}/{document}" if seed else document
    return hashlib.blake2b(named.encode(), digest_size=8).digest()


def drawn(documents: Iterable[str], seed: str = "") -> list[str]:
    """The documents in the order of their numbers."""
    return sorted(set(documents), key=lambda document: rank_of(document, seed))


def numbered(row_ids: list[str]) -> list[str]:
    """The ids with every repetition numbered, so that an id names one row."""
    # Two CancerGov documents start counting their rows anew for each disease they treat.
    seen: Counter[str] = Counter()
    unique = []
    for row_id in row_ids:
        seen[row_id] += 1
        unique.append(row_id if seen[row_id] == 1 else f"{row_id}.{seen[row_id]}")
    return unique


def rows_of_sites(path: Path) -> dict[str, list[Row]]:
    """MedQuAD's rows by site: id, document, source, question, answer."""
    rows = pq.read_table(path, columns=["id", "source", "question", "answer"]).to_pylist()
    sites: dict[str, list[Row]] = {}
    for row, name in zip(rows, numbered([row["id"] for row in rows]), strict=True):
        document = row["id"].rsplit("/", 1)[0]  # an id is SITE/DOCUMENT/row
        sites.setdefault(row["source"], []).append(row | {"id": name, "document": document})
    return sites


def rows_of_texts(path: Path) -> list[Row]:
    """The rows of texts, one document each."""
    table = pq.read_table(path, columns=["id", "source", "text"])
    return [row | {"document": row["id"]} for row in table.to_pylist()]


def plain(line: str) -> str:
    """A line of tokens as it is usually written."""
    for pattern, instead in _DETOKENIZE:
        line = pattern.sub(instead, line)
    return line.strip()


def read_book(path: Path) -> list[str]:
    """A book's text in parts of about PART characters, each of whole lines."""
    parts, lines, length = [], [], 0
    for line in path.read_text(encoding="utf-8").splitlines()[1:]:
        lines.append(plain(line))
        length += len(line)
        if length >= PART:
            parts.append("\n".join(lines))
            lines, length = [], 0
    return [*parts, "\n".join(lines)] if lines else parts


def rows_of_books(folder: Path) -> list[Row]:
    """The rows of all books: id, document, source, text."""
    return [
        {"id": f"{name}/{number}", "document": name, "source": "fiction", "text": text}
        for name in BOOKS
        for number, text in enumerate(read_book(folder / f"{name}.txt"))
    ]


def read_across(rows: list[Row]) -> list[Row]:
    """Rows with answers as from pages of two columns that were read across, every second one.

    A line of the answer is followed by one of another row's, as in text taken from a page: the
    words are right, and what they say is not.
    """
    broken = [r for r in rows if rank_of(r["document"], COLUMNS_SEED)[0] % 2]
    across = {}
    for row, other in zip(broken, broken[1:] + broken[:1], strict=True):
        mine, its = row["answer"].split(), other["answer"].split()
        words = []
        for line in range(0, max(len(mine), len(its)), COLUMN):
            words += mine[line : line + COLUMN] + its[line : line + COLUMN]
        across[row["id"]] = " ".join(words[: len(mine)])
    return [row | {"answer": across.get(row["id"], row["answer"])} for row in rows]


def text_of(row: Row) -> str:
    """A row's text, of a question with its answer both."""
    return row["text"] if "text" in row else f"{row['question']} {row['answer']}"


def words_of(row: Row) -> list[str]:
    """A row's words in lower case."""
    return re.findall(r"\w+", text_of(row).lower())


def runs_of(row: Row) -> set[int]:
    """The runs of RUN words in a row, as numbers."""
    words = words_of(row)
    return {hash(tuple(words[i : i + RUN])) for i in range(len(words) - RUN + 1)}


def write(rows: list[Row], path: Path) -> None:
    """Write rows and print their number and size."""
    path.parent.mkdir(parents=True, exist_ok=True)
    table = pa.Table.from_pylist(rows)
    table = table.select([name for name in COLUMNS if name in table.column_names])
    pq.write_table(table, path, compression="zstd", compression_level=19)
    documents = len({row["document"] for row in rows})
    characters = sum(len(text_of(row)) for row in rows)
    size = path.stat().st_size
    print(
        f"{path.name}: {len(rows)} rows, {documents} documents, {characters} characters, "
        f"{size} bytes"
    )


def report_overlap(name: str, rows: list[Row], corpus: list[Row]) -> None:
    """Print how much of some rows is in the corpus too."""
    texts = {tuple(words_of(row)) for row in corpus}
    known = set().union(*(runs_of(row) for row in corpus))
    exact = sum(tuple(words_of(row)) in texts for row in rows)
    runs = [runs_of(row) for row in rows]
    sharing = sum(bool(of & known) for of in runs)
    shared, total = (sum(len(of) for of in each) for each in ([of & known for of in runs], runs))
    print(
        f"{name}: of {len(rows)} rows {exact} are in the corpus, {sharing} share {RUN} words with "
        f"it; {shared} of {total} runs of {RUN} words"
    )


def main() -> None:
    """Write all files."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of the source files")
    parser.add_argument("--fiction", type=Path, required=True, help="folder of the books")
    parser.add_argument("--out", type=Path, default=HERE / "data")
    parser.add_argument("--efficacy", type=Path, default=HERE.parent / "efficacy" / "data")
    arguments = parser.parse_args()
    out = arguments.out

    sites = rows_of_sites(arguments.data / "medquad.parquet")
    kept_out = {}
    for site, rows in sites.items():
        ranked = drawn(row["document"] for row in rows)
        kept_out[site] = set(ranked[: round(len(ranked) * OF_A_SITE)])
    read = {
        site: [row for row in rows if row["document"] not in kept_out[site]]
        for site, rows in sites.items()
        if site != NEAR
    }
    questions = {name: read.pop(site) for name, site in QUESTIONS.items()}
    for site, rows in read.items():
        write(rows, arguments.efficacy / "health" / f"{site}.parquet")
    write(read_across(questions["topics"]), arguments.efficacy / "columns.parquet")

    longer = rows_of_texts(arguments.data / "general_text.parquet")
    general = {n: [row for row in longer if row["source"] in its] for n, its in GENERAL.items()}
    more = rows_of_texts(arguments.data / "general_more.parquet")
    more = [row for row in more if row["source"] not in LEFT_OUT]
    reviews = {row["id"]: row for row in more if row["source"] == "movie_reviews"}
    more = [row for row in more if row["source"] != "movie_reviews"]
    more += rows_of_books(arguments.fiction)
    held_out = {HELD_OUT_BOOK}
    for kind in ("masc", "shakespeare"):
        ranked = drawn((r["id"] for r in more if r["source"].startswith(kind)), HELD_OUT_SEED)
        held_out |= set(ranked[: round(len(ranked) * HELD_OUT_SHARE)])
    write([r for r in more if r["document"] in held_out], out / "heldout.parquet")
    more = [row for row in more if row["document"] not in held_out]

    order = drawn(reviews, REVIEWS_SEED)
    texts = {"reviews": [reviews[name] for name in sorted(order[:CORPUS_REVIEWS])]}
    texts["wikitext"] = general["wikitext"]
    for kind in ("fiction", "masc", "shakespeare"):
        texts[kind] = [row for row in more if row["source"].startswith(kind)]
    for folder, files in {"texts": texts, "questions": questions}.items():
        for name, rows in files.items():
            write(rows, out / "corpus" / folder / f"{name}.parquet")

    corpus = [row for rows in (*texts.values(), *questions.values()) for row in rows]
    known = set().union(*(runs_of(row) for row in corpus))
    # Enough of them share nothing with the corpus.
    others = order[CORPUS_REVIEWS:]
    fresh = [name for name in others if not runs_of(reviews[name]) & known][:ADAPTATION_REVIEWS]
    passed_over = others.index(fresh[-1]) + 1 - ADAPTATION_REVIEWS
    print(f"{passed_over} reviews left out that share {RUN} words with the corpus")
    site = QUESTIONS["topics"]
    topics = [row for row in sites[site] if row["document"] in kept_out[site]]
    adaptation = {
        "reviews": [reviews[name] for name in sorted(fresh)],
        "topics": [row for row in topics if not runs_of(row) & known],
        "cancergov": sites[NEAR],
        "addresses": general["addresses"],
    }
    for name, rows in adaptation.items():
        write(rows, out / f"{name}.parquet")
    for name, rows in (adaptation | {"all topics": topics}).items():
        report_overlap(name, rows, corpus)


if __name__ == "__main__":
    main()
