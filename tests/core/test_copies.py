"""Copies: what counts as the same, and what is only alike."""

import random
from dataclasses import replace

import pytest

from albat_core.measures.copies import copies_of, first_copies, same_documents, word_runs
from albat_core.records.examples import Example, example_content

WORDS = [f"word{n}" for n in range(400)]


def text(seed: int, words: int = 60) -> str:
    return " ".join(random.Random(seed).choices(WORDS, k=words))


def edited(original: str, every: int) -> str:
    """Change one word in so many."""
    words = original.split()
    return " ".join(f"changed{n}" if n % every == every - 1 else w for n, w in enumerate(words))


def jaccard(one: str, other: str) -> float:
    """By hand: of runs of five words."""
    runs = [
        {tuple(words[n : n + 5]) for n in range(len(words) - 4)}
        for words in (one.split(), other.split())
    ]
    return len(runs[0] & runs[1]) / len(runs[0] | runs[1])


def test_typography_case_and_punctuation_do_not_count() -> None:
    assert word_runs("The “ﬁrst” Leaf, of\u00a0all: ROOTS!") == word_runs(
        "the first leaf of all roots"
    )
    assert word_runs("leaf root stem bark seed") != word_runs("root leaf stem bark seed")
    assert not word_runs(" … ")


def test_a_part_of_an_original_is_a_copy_and_a_new_text_is_none() -> None:
    original = text(1, 200)
    middle = " ".join(original.split()[50:120])
    longer = f"{text(2, 30)} {original} {text(3, 30)}"
    texts = [original, middle, longer, edited(original, 60), edited(original, 8), text(4, 200)]
    assert copies_of(texts, [text(5), original], 0.8).tolist() == [True] * 4 + [False] * 2


def test_a_short_text_is_a_copy_only_of_the_same() -> None:
    original = f"{text(6, 50)} the cause is not known {text(7, 50)}"
    assert not copies_of(["the cause is not known"], [original], 0.8).any()
    assert copies_of(["The cause is not known."], ["the cause is not known"], 0.8).all()


@pytest.mark.parametrize("every", [4, 12, 30, 60, 100])
def test_near_copies_are_those_of_the_exact_similarity(every: int) -> None:
    originals = [text(n, 100) for n in range(20)]
    changed = [edited(one, every) for one in originals]
    first = first_copies([*originals, *changed], 0.7)
    assert first[:20].tolist() == list(range(20))
    for n, one in enumerate(originals):
        assert (first[20 + n] == n) == (jaccard(one, changed[n]) >= 0.7)


def test_a_line_that_stands_there_a_hundred_times_is_one() -> None:
    lines = ["seed stem"] * 100 + [text(1)] * 3 + ["", "", text(2)]
    assert sorted(set(first_copies(lines, 0.8).tolist())) == [0, 100, 103, 104, 105]


def test_documents_are_the_same_by_most_of_their_words() -> None:
    boiler = "all rights are reserved by the owner of this page and its readers"
    documents = ["a", "a", "b", "b", "c", "d", "e"]
    texts = [text(1), boiler, text(2), boiler, text(1), edited(text(2), 60), text(3)]
    same = same_documents(documents, texts, 0.8)
    assert same == {"a": "a", "b": "b", "c": "a", "d": "b", "e": "e"}


def test_a_picture_is_its_file_whatever_its_caption() -> None:
    dog = Example("a", "a", "s", text="a dog", image=b"one")
    assert example_content(dog) == example_content(replace(dog, text="a cat"))
    assert example_content(dog) != example_content(replace(dog, image=b"two"))
    assert example_content(replace(dog, image=None)) == "a dog"
