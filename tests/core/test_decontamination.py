"""Decontamination: long n-grams as in GPT-3 (arXiv 2005.14165, appendix C), and near duplicates.

Both are checked against comparing every candidate with every held-out row.
"""

import unicodedata
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pyarrow as pa
import pytest
from numpy.typing import NDArray
from PIL import Image

from albat_core.backbones import open_backbone
from albat_core.errors import InputError
from albat_core.pictures import PictureConfig, prepare_picture
from albat_core.records.candidates import (
    CANDIDATE_SCHEMA,
    CANDIDATES,
    NEIGHBOUR_SCHEMA,
    NEIGHBOURS,
    read_candidates,
)
from albat_core.records.examples import Example
from albat_core.records.indexes import load_index
from albat_core.records.shards import read_examples
from albat_core.records.splits import TEST, TRAIN, VALIDATION, read_role
from albat_core.records.tables import read_table, write_table
from albat_core.records.vectors import QUERY_IDS as IDS
from albat_core.records.vectors import QUERY_STAGE, VECTORS
from albat_core.runs.chain import Chain
from albat_core.search.index import VectorIndex
from albat_core.stages.decontaminate import (
    DecontaminationConfig,
    SharedRuns,
    decontaminate,
    similar_positions,
)
from albat_core.stages.embed import embed_examples
from albat_core.stages.retrieve import take_candidates
from albat_core.stages.select import select_all
from albat_core.stages.split import SplitConfig, split_adaptation
from albat_core.store.artifacts import ArtifactRef, ArtifactStore, Built
from albat_core.store.stage import Runtime
from flows.config import load_config
from tests.core.picture_files import drawing, encoded
from tests.core.test_ngram import shards_of
from tests.toys import topic_rows, write_jsonl, write_run

WORDS = [f"w{n}" for n in range(40)]
Bools = NDArray[np.bool_]


def drawn(words: Sequence[str], count: int, seed: int) -> str:
    return " ".join(np.random.default_rng(seed).choice(words, size=count))


def flagged(
    texts: Sequence[str],
    heldout: Sequence[str],
    n: int = 13,
    common: int = 10,
    documents: Sequence[str] | None = None,
) -> list[bool]:
    names = documents or [f"d{i}" for i in range(len(texts))]
    shared = SharedRuns(heldout, n, common)
    for text, name in zip(texts, names, strict=True):
        shared.look(text, name)
    found: list[bool] = shared.mask().tolist()
    return found


def test_copies_are_found_in_any_typography_and_script() -> None:
    english = "a final effect of the fluid that flows first"
    chinese = "树叶生长在树枝上根吸收土壤里的水和养分"
    assert flagged([english.replace("fi", "ﬁ").replace("fl", "ﬂ")], [english]) == [True]
    vietnamese = "bệnh tim mạch là một bệnh rất nặng nề"
    assert flagged([unicodedata.normalize("NFD", vietnamese)], [vietnamese]) == [True]
    assert flagged([f"前{chinese}後", chinese[:10]], [chinese]) == [True, False]


def test_thirteen_words_in_a_row_are_a_copy_and_twelve_are_not() -> None:
    heldout = " ".join(WORDS[:20])
    inside = [f"a b {' '.join(WORDS[3 : 3 + count])} c" for count in (12, 13)]
    broken = " ".join([*WORDS[:12], "x", *WORDS[12:20]])
    assert flagged([*inside, broken, heldout, ""], [heldout]) == [False, True, False, True, False]


def test_case_and_punctuation_do_not_hide_a_copy() -> None:
    heldout = "The leaf, the root; and THE stem (of green) water: grow in sun. Soil!"
    row = "see: the leaf the root and the stem of green water grow -- in Sun"
    assert flagged([row], [heldout]) == [True]


def test_runs_that_more_than_ten_documents_share_are_boilerplate() -> None:
    boilerplate, text = " ".join(WORDS[:15]), " ".join(WORDS[20:35])
    heldout = [f"{boilerplate} end", text]
    rows = [f"{boilerplate} row {n}" for n in range(11)]
    assert flagged(rows, heldout) == [False] * 11
    assert flagged(rows[:10], heldout) == [True] * 10
    assert flagged(rows, heldout, common=11) == [True] * 11
    assert flagged([*rows, f"{rows[0]} {text}"], heldout) == [False] * 11 + [True]


def test_rows_of_one_document_are_no_boilerplate() -> None:
    heldout = " ".join(WORDS[:15])
    documents = ["a"] * 8 + ["b"] * 8
    assert flagged([heldout] * 16, [heldout], common=2, documents=documents) == [True] * 16
    assert flagged([heldout] * 16, [heldout], common=1, documents=documents) == [False] * 16


def test_a_short_held_out_text_must_occur_whole_and_have_eight_words() -> None:
    nine, eight, seven = " ".join(WORDS[:9]), " ".join(WORDS[10:18]), " ".join(WORDS[20:27])
    rows = [f"a {nine} b", f"a {' '.join(WORDS[:8])} b", f"{eight}", f"a {seven} b"]
    assert flagged(rows, [nine, eight, seven]) == [True, False, True, False]


@pytest.mark.parametrize("n", [5, 9, 13])
def test_rows_found_are_those_that_hold_a_held_out_run(n: int) -> None:
    generator = np.random.default_rng(n)

    def lines(count: int) -> list[str]:
        sizes = generator.integers(0, 25, count)
        return [" ".join(generator.choice(["a", "b"], size=size)) for size in sizes]

    texts, heldout, names = lines(60), lines(8), [f"d{i % 30}" for i in range(60)]
    runs = set()
    for text in heldout:
        words = text.split()
        runs |= {" ".join(words[i : i + n]) for i in range(len(words) - n + 1)}
        runs |= {text} if 8 <= len(words) < n else set()
    holders = {
        run: {names[i] for i, text in enumerate(texts) if f" {run} " in f" {text} "} for run in runs
    }
    expected = [
        any(len(holders[run]) <= 3 and f" {run} " in f" {text} " for run in runs) for text in texts
    ]
    assert 0 < sum(expected) < 60
    assert flagged(texts, heldout, n, common=3, documents=names) == expected


def unit(vectors: NDArray[np.floating]) -> NDArray[np.float32]:
    return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True), np.float32)


def png(picture: Image.Image | bytes) -> bytes:
    """Return a picture as shards have it."""
    file = picture if isinstance(picture, bytes) else encoded(picture)
    return prepare_picture(file, PictureConfig(resolution=64), "")[0]


def flat(vectors: NDArray[np.float32]) -> VectorIndex:
    index = VectorIndex(faiss.IndexFlatIP(vectors.shape[1]), Runtime(device="cpu"))
    index.add(vectors)
    return index


def test_all_similar_rows_are_found_however_many_there_are() -> None:
    generator = np.random.default_rng(0)
    queries = unit(generator.standard_normal((70, 8)))  # more than are searched at once
    copies = queries[[0] * 300 + [1] * 40 + [2] + [69] * 2]
    rows = np.concatenate([unit(generator.standard_normal((400, 8))), copies])
    rows = unit(rows + 0.05 * generator.standard_normal(rows.shape))
    for similarity in (0.5, 0.9, 0.98):
        expected = np.flatnonzero((queries @ rows.T).max(axis=0) >= similarity)
        found = similar_positions(flat(rows), queries, similarity, len(rows))
        assert found.tolist() == expected.tolist()
        assert len(found) > 32


def test_a_similarity_of_one_finds_equal_vectors_only() -> None:
    rows = unit(np.random.default_rng(1).standard_normal((50, 200)))
    assert similar_positions(flat(rows), rows[7:9], 1.0, 50).tolist() == [7, 8]
    same = np.repeat(rows[:1], 50, axis=0)
    assert similar_positions(flat(same), rows[:1], 1.0, 50).tolist() == list(range(50))
    assert similar_positions(flat(same), rows[1:2], 0.9, 50).tolist() == []


class Planted:
    """A run whose corpus holds every adaptation row, alone (`copy`) or within others (`quote`)."""

    def __init__(self, folder: Path) -> None:
        path = write_run(folder, retrieval={"neighbours": 160})
        rows = topic_rows("plants", 40, seed=1)
        copies = [r | {"id": f"copy-{n}", "doc": f"c{n}"} for n, r in enumerate(rows[::2])]
        quotes = [
            {"id": f"quote-{n}", "doc": f"q{n}", "text": f"mast {r['text']} tide deck sail port"}
            for n, r in enumerate(rows[1::2])
        ]
        write_jsonl(folder / "corpus" / "copies.jsonl", copies + quotes)
        config = load_config(str(path))
        self.chain, self.runtime = Chain(config), config.runtime
        self.store = ArtifactStore(config.runtime.root)
        self.candidates, self.adaptation = self.chain.retrieved, self.chain.inputs.adaptation
        self.heldout = [
            e for role in (TEST, VALIDATION) for e in read_role(self.store, self.adaptation, role)
        ]
        table = self.table(self.candidates)
        self.examples = read_examples(self.store, table["shard"], table["row"])
        with open_backbone(config.backbone, config.runtime) as backbone:
            self.vectors, ours = (
                embed_examples(backbone, backbone.encode(rows), 1, "")
                for rows in (self.heldout, self.examples)
            )
        self.queries = self.store.produce(QUERY_STAGE, 1, {}, {"held": "out"}, self._write)
        project = load_index(self.store, self.chain.inputs.index, config.runtime).space.project
        self.cosines = (project(ours) @ project(self.vectors).T).max(axis=1)

    def _write(self, folder: Path) -> Built:
        np.save(folder / VECTORS, self.vectors)
        write_table(pa.table({"example_id": [e.example_id for e in self.heldout]}), folder / IDS)
        return Built(facts={"dimension": self.vectors.shape[1]})

    def decontaminate(self, candidates: ArtifactRef | None = None, **knobs: object) -> ArtifactRef:
        config = DecontaminationConfig.model_validate({"copies": None} | knobs)
        return decontaminate(
            candidates or self.candidates,
            self.queries,
            self.chain.inputs.index,
            self.adaptation,
            config,
            self.runtime,
        )

    def table(self, ref: ArtifactRef) -> dict[str, list[Any]]:
        columns: dict[str, list[Any]] = read_table(self.store.folder(ref) / CANDIDATES).to_pydict()
        return columns

    def repeats(self, n: int) -> Bools:
        """Whether each candidate holds n words of a held-out row, or all of a shorter one."""
        lines = [(e.text or "").replace(".", "") for e in self.examples]
        words = [(e.text or "").replace(".", "").split() for e in self.heldout]
        runs = [" ".join(w[i : i + n]) for w in words for i in range(len(w) - n + 1)]
        runs += [" ".join(w) for w in words if 8 <= len(w) < n]
        return np.array([any(f" {run} " in f" {line} " for run in runs) for line in lines])


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Planted:
    return Planted(tmp_path_factory.mktemp("planted"))


def test_copies_of_held_out_rows_are_left_out(planted: Planted) -> None:
    names = planted.table(planted.candidates)["example_id"]
    kept = set(planted.table(planted.decontaminate(ngram=6, similarity=None))["example_id"])
    repeated = planted.repeats(6)
    assert kept == {name for name, copy in zip(names, repeated, strict=True) if not copy}
    held = {e.text for e in planted.heldout}
    copies = {e.example_id: e.text for e in planted.examples if e.example_id.startswith("copy")}
    assert len(copies) == 20
    assert not {copies[name] for name in kept & set(copies)} & held


def test_copies_of_rows_that_are_trained_on_are_left_out_and_counted(planted: Planted) -> None:
    ref = planted.decontaminate(ngram=50, similarity=None, copies=0.8)
    train = [e.text or "" for e in read_role(planted.store, planted.adaptation, TRAIN)]
    names = planted.table(planted.candidates)["example_id"]
    long = [text for text in train if len(text.split()) >= 8]  # shorter ones coincide by chance
    repeats = {
        e.example_id
        for e in planted.examples
        if e.text in train or any(text in (e.text or "") for text in long)
    }
    assert {name.partition("-")[0] for name in repeats} == {"copy", "quote"}
    kept = planted.table(ref)["example_id"]
    assert not repeats & set(kept)
    assert not {name for name in names if name.startswith(("plants", "ships"))} - set(kept)
    facts = planted.store.manifest(ref).facts
    assert facts["excluded_trained"] == len(repeats)
    assert facts["excluded_repeated"] == 0


def test_a_line_that_is_there_often_is_a_candidate_once(planted: Planted) -> None:
    words = drawn(WORDS, 40, 3)
    often = [Example(f"often-{n}", f"d{n}", "s", text=words) for n in range(20)]
    nearly = Example("nearly", "n", "s", text=words.replace(" ", " other ", 1))
    once = Example("once", "o", "s", text=drawn(WORDS, 40, 4))
    some = candidates(planted, [*often, nearly, once])
    ref = planted.decontaminate(some, ngram=50, similarity=None, copies=0.8)
    assert planted.table(ref)["example_id"] == ["often-0", "once"]
    assert planted.store.manifest(ref).facts["excluded_repeated"] == 20


def test_a_picture_that_is_saved_again_is_a_candidate_once(
    planted: Planted, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Texts between pictures, several blocks, pictures that stay beside those left out."""
    monkeypatch.setattr("albat_core.records.candidates._BLOCK", 3)
    pictures = {
        "first": png(drawing()),
        "same": png(drawing()),
        "jpeg": png(encoded(drawing(), "JPEG", quality=85)),
        "other": png(drawing("peru")),
        "small": png(drawing("peru").resize((57, 57))),
    }
    rows = [Example(n, n, "s", text="a figure", image=image) for n, image in pictures.items()]
    texts = [Example(f"t{n}", f"t{n}", "s", text=drawn(WORDS, 40, n)) for n in (90, 91)]
    some = candidates(planted, [texts[0], *rows[:2], texts[1], *rows[2:]])

    def kept(**knobs: object) -> tuple[list[str], int]:
        ref = planted.decontaminate(some, ngram=50, similarity=None, **knobs)
        names = planted.table(ref)["example_id"]
        return names, planted.store.manifest(ref).facts["excluded_repeated"]

    assert kept(copies=0.8) == (["t90", "first", "t91", "other"], 3)
    assert kept(copies=0.8, pictures=None) == (
        ["t90", "first", "t91", "jpeg", "other", "small"],
        1,
    )
    assert kept(copies=None)[1] == 0


@pytest.mark.parametrize("similarity", [0.3, 0.7, 1.0])
def test_rows_that_are_alike_are_those_of_the_exact_cosines(
    planted: Planted, similarity: float
) -> None:
    ref = planted.decontaminate(ngram=50, similarity=similarity)
    names = planted.table(planted.candidates)["example_id"]
    alike = planted.cosines >= similarity - 1e-5
    assert planted.store.manifest(ref).facts["excluded_similar"] == alike.sum() > 0
    left_out = alike | planted.repeats(50)
    expected = [name for name, out in zip(names, left_out, strict=True) if not out]
    assert planted.table(ref)["example_id"] == expected


def test_the_manifest_counts_what_was_left_out(planted: Planted) -> None:
    ref = planted.decontaminate(ngram=6, similarity=0.5)
    repeated, alike = planted.repeats(6), planted.cosines >= 0.5
    assert (repeated & ~alike).any()
    assert (alike & ~repeated).any()
    manifest = planted.store.manifest(ref)
    assert manifest.facts == {
        "examined": 160,
        "excluded_ngram": repeated.sum(),
        "excluded_similar": alike.sum(),
        "excluded_trained": 0,
        "excluded_repeated": 0,
        "excluded": (repeated | alike).sum(),
    }
    assert manifest.rows == len(planted.table(ref)["row"]) == 160 - (repeated | alike).sum()


def test_neighbour_pairs_follow_the_candidates_that_stay(planted: Planted) -> None:
    def pairs(ref: ArtifactRef) -> set[tuple[str, str, float]]:
        table = read_table(planted.store.folder(ref) / NEIGHBOURS)
        assert table.schema.equals(NEIGHBOUR_SCHEMA)
        names = planted.table(ref)["example_id"]
        return {(p["query"], names[p["candidate"]], p["similarity"]) for p in table.to_pylist()}

    ref = planted.decontaminate(ngram=6, similarity=0.5)
    kept = set(planted.table(ref)["example_id"])
    before = pairs(planted.candidates)
    assert pairs(ref) == {pair for pair in before if pair[1] in kept} != before


def test_what_stays_is_as_it_was_and_read_as_candidates(planted: Planted) -> None:
    ref = planted.decontaminate(ngram=6, similarity=0.5)
    assert ref.stage == planted.candidates.stage
    before = read_table(planted.store.folder(planted.candidates) / CANDIDATES)
    after = read_table(planted.store.folder(ref) / CANDIDATES)
    assert after.schema.equals(CANDIDATE_SCHEMA)
    stays = set(after["example_id"].to_pylist())
    assert after.to_pylist() == [r for r in before.to_pylist() if r["example_id"] in stays]
    chosen = select_all(ref, planted.runtime)
    assert planted.store.manifest(chosen).rows == after.num_rows


def test_a_baseline_has_as_many_rows_as_the_selection_it_is_compared_with(
    planted: Planted,
) -> None:
    few = select_all(planted.decontaminate(ngram=6), planted.runtime)
    before = read_table(planted.store.folder(planted.candidates) / CANDIDATES)
    assert planted.store.manifest(few).rows < before.num_rows
    chosen = select_all(planted.candidates, planted.runtime, like=few)
    assert planted.store.manifest(chosen).rows == planted.store.manifest(few).rows


def candidates(planted: Planted, examples: list[Example]) -> ArtifactRef:
    return take_candidates([shards_of(examples, planted.runtime)], planted.runtime)


def test_a_chat_is_read_as_its_contents(planted: Planted) -> None:
    words = next(w for w in ((e.text or "").split() for e in planted.heldout) if len(w) >= 8)
    halves = [" ".join(words[:4]), " ".join(words[4:])]
    chats = [
        Example(
            f"chat-{n}",
            f"chat-{n}",
            "s",
            messages=tuple({"role": "user", "content": half} for half in order),
        )
        for n, order in enumerate((halves, ["sail", "mast"]))
    ]
    ref = planted.decontaminate(candidates(planted, chats), ngram=8, similarity=None)
    assert planted.table(ref)["example_id"] == ["chat-1"]


def test_captions_of_pictures_are_not_compared(planted: Planted, runtime: Runtime) -> None:
    drawings = [png(Image.new("RGB", (8, 8), (20 * n, 0, 0))) for n in range(9)]
    rows = [
        Example(f"p{n}", f"p{n}", "s", text=drawn(WORDS, 15, n), image=image)
        for n, image in enumerate(drawings)
    ]
    shards = shards_of(rows, runtime)
    adaptation = split_adaptation([shards], [], SplitConfig(folds=2), 0, runtime)
    config = DecontaminationConfig(similarity=None, copies=None)
    unread = planted.queries, planted.chain.inputs.index
    ref = decontaminate(take_candidates([shards], runtime), *unread, adaptation, config, runtime)
    assert ArtifactStore(runtime.root).manifest(ref).facts["excluded"] == 0
    captions = [replace(row, image=None) for row in rows]
    text = take_candidates([shards_of(captions, runtime)], runtime)
    written = split_adaptation([shards_of(captions, runtime)], [], SplitConfig(folds=2), 0, runtime)
    out = decontaminate(text, *unread, written, config, runtime)
    assert ArtifactStore(runtime.root).manifest(out).facts["excluded"] > 0


def drawn_faces(runtime: Runtime) -> ArtifactRef:
    """An adaptation set of five pictures, which have one caption, after its split."""
    faces = ("gold", "peru", "white", "black", "pink")
    rows = [Example(f, f, "s", text="a figure", image=png(drawing(f))) for f in faces]
    return split_adaptation([shards_of(rows, runtime)], [], SplitConfig(folds=2), 0, runtime)


def test_a_near_copy_of_a_candidate_that_is_left_out_stays(
    planted: Planted, runtime: Runtime
) -> None:
    """Whether it copies a row that is trained on, the embeddings tell."""
    store, adaptation = ArtifactStore(runtime.root), drawn_faces(runtime)
    own = read_role(store, adaptation, TRAIN)[0]
    jpeg = png(encoded(drawing(own.document), "JPEG", quality=85))
    some = [replace(own, example_id="own"), replace(own, example_id="jpeg", image=jpeg)]
    ref = decontaminate(
        take_candidates([shards_of(some, runtime)], runtime),
        None,
        planted.chain.inputs.index,
        adaptation,
        DecontaminationConfig(similarity=None),
        runtime,
    )
    assert read_candidates(store, ref)["example_id"].to_pylist() == ["jpeg"]
    facts = store.manifest(ref).facts
    assert (facts["excluded_trained"], facts["excluded_repeated"]) == (1, 0)


def test_a_held_out_text_that_is_there_too_often_to_be_told_by_its_runs_is_left_out(
    planted: Planted,
) -> None:
    """Whole, or cut at another place; what has it as a part and says more may be boilerplate."""
    first = next(e.text or "" for e in planted.heldout if len((e.text or "").split()) > 12)
    cut, new = " ".join(first.split()[2:]), drawn(WORDS, 40, 5)
    often = [Example(f"often-{n}", f"d{n}", "s", text=first) for n in range(11)]
    said = {n: f"{first} {drawn(WORDS, 60, n)}" for n in (7, 8)}
    more = [Example(f"more-{n}", f"m{n}", "s", text=text) for n, text in said.items()]
    rest = [Example("cut", "c", "s", text=cut), *more, Example("new", "n", "s", text=new)]
    some = candidates(planted, [*often, *rest])
    ref = planted.decontaminate(some, ngram=10, similarity=None, copies=0.8)
    assert planted.table(ref)["example_id"] == ["more-7", "more-8", "new"]
    facts = planted.store.manifest(ref).facts
    assert (facts["excluded_ngram"], facts["excluded_repeated"]) == (12, 0)


def test_a_picture_that_is_saved_again_is_of_one_document_with_the_first(
    runtime: Runtime,
) -> None:
    """However it is saved, and whatever its caption: none of them is held out from another."""
    faces = ("gold", "peru", "white", "black", "pink", "green")
    rows = [Example(f, f, "s", text=f"{f} face", image=png(drawing(f))) for f in faces]
    for name in faces[::2]:
        jpeg, small = encoded(drawing(name), "JPEG", quality=85), drawing(name).resize((57, 57))
        rows += [
            Example(f"{name}-{n}", f"{name}-{n}", "s", text=f"{n}", image=png(file))
            for n, file in enumerate((jpeg, small))
        ]
    store = ArtifactStore(runtime.root)
    ref = split_adaptation([shards_of(rows, runtime)], [], SplitConfig(folds=2), 0, runtime)
    assert store.manifest(ref).facts["joined_documents"] == 6
    for role in (TRAIN, VALIDATION, TEST):
        for row in read_role(store, ref, role):
            assert row.document == row.example_id.partition("-")[0]


def test_held_out_pictures_are_left_out_without_embeddings(runtime: Runtime) -> None:
    store, adaptation = ArtifactStore(runtime.root), drawn_faces(runtime)
    held = [e for role in (TEST, VALIDATION) for e in read_role(store, adaptation, role)]
    jpeg = png(encoded(drawing(held[-1].document), "JPEG", quality=85))
    new = replace(held[0], example_id="new", image=png(drawing("green")))
    again = replace(held[-1], example_id="jpeg", image=jpeg)
    some = take_candidates([shards_of([*held, again, new], runtime)], runtime)

    def kept(**knobs: object) -> list[str]:
        config = DecontaminationConfig.model_validate(knobs)
        ref = decontaminate(some, None, None, adaptation, config, runtime)
        names: list[str] = read_candidates(store, ref)["example_id"].to_pylist()
        assert store.manifest(ref).facts["excluded_ngram"] == len(held) + 2 - len(names)
        return names

    assert kept() == kept(similarity=None) == ["new"]
    assert kept(pictures=None) == ["jpeg", "new"]


def test_nothing_left_is_refused(planted: Planted) -> None:
    copies = [replace(e, example_id=f"all-{n}") for n, e in enumerate(planted.heldout)]
    with pytest.raises(InputError, match=f"none among {len(copies)}: .* {len(copies)} share words"):
        planted.decontaminate(candidates(planted, copies), ngram=6, similarity=None, common=99)
