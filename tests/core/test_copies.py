"""Copies: what counts as the same, and what is only alike."""

import random
from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from albat_core.measures.copies import (
    copies_of,
    first_copies,
    first_pictures,
    repeats_before,
    said_in,
    same_documents,
    telling_runs,
    word_runs,
)
from albat_core.pictures import PictureConfig, picture_colours, prepare_picture
from albat_core.records.examples import Example, example_content
from tests.core.picture_files import drawing, encoded

WORDS = [f"word{n}" for n in range(400)]


def runs(*texts: str) -> list[NDArray[np.uint64]]:
    return [word_runs(text) for text in texts]


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
    one, other = runs("The “ﬁrst” Leaf, of\u00a0all: ROOTS!", "the first leaf of all roots")
    assert one.tolist() == other.tolist()
    one, other = runs("leaf root stem bark seed", "root leaf stem bark seed")
    assert one.tolist() != other.tolist()
    assert not len(word_runs(" … "))
    assert word_runs("bệnh tim mạch") == word_runs("bệnh tim mạch")  # NFD


def test_scripts_without_spaces_are_compared_by_characters() -> None:
    chinese = "树叶生长在树枝上,根吸收土壤里的水和养分。"
    thai = "ใบไม้เติบโตบนกิ่งและรากดูดน้ำ"
    for said, other in ((chinese, "船在海上航行,水手升起了帆。"), (thai, "เรือแล่นในทะเลและลูกเรือ")):
        assert len(word_runs(said)) > 8
        assert copies_of(runs(f"前 {said} 後", other), runs(said), 0.8).tolist() == [True, False]


def test_a_part_of_an_original_is_a_copy_and_a_new_text_is_none() -> None:
    original = text(1, 200)
    middle = " ".join(original.split()[50:120])
    longer = f"{text(2, 30)} {original} {text(3, 30)}"
    texts = [original, middle, longer, edited(original, 60), edited(original, 8), text(4, 200)]
    assert (
        copies_of(runs(*texts), runs(text(5), original), 0.8).tolist() == [True] * 4 + [False] * 2
    )


def test_a_short_text_is_a_copy_only_of_the_same() -> None:
    original = f"{text(6, 50)} the cause is not known {text(7, 50)}"
    assert not copies_of(runs("the cause is not known"), runs(original), 0.8).any()
    assert copies_of(runs("The cause is not known."), runs("the cause is not known"), 0.8).all()


@pytest.mark.parametrize("every", [4, 12, 30, 60, 100])
def test_near_copies_are_those_of_the_exact_similarity(every: int) -> None:
    originals = [text(n, 100) for n in range(20)]
    changed = [edited(one, every) for one in originals]
    first = first_copies(runs(*originals, *changed), 0.7)
    assert first[:20].tolist() == list(range(20))
    for n, one in enumerate(originals):
        assert (first[20 + n] == n) == (jaccard(one, changed[n]) >= 0.7)


def test_a_line_that_stands_there_a_hundred_times_is_one() -> None:
    lines = ["seed stem"] * 100 + [text(1)] * 3 + ["", "", text(2)]
    assert sorted(set(first_copies(runs(*lines), 0.8).tolist())) == [0, 100, 103, 104, 105]


def test_boilerplate_cut_at_other_places_is_kept_once() -> None:
    page = text(1, 200).split()
    starts = (0, 50, 100, 140, 20, 70, 120, 30)
    pieces = [" ".join(page[start : start + 60]) for start in starts]
    own = [f"{text(n, 30)} {' '.join(page[:30])}" for n in range(2, 6)]  # half of it is new
    found = repeats_before(runs(*pieces, *own, text(9)), 0.8)
    assert found.tolist() == [False] * 4 + [True] * 4 + [False] * 5
    # compared with one text alone, none is a copy
    assert first_copies(runs(*pieces), 0.8).tolist() == list(range(len(pieces)))


def test_what_nearly_repeats_one_text_repeats_those_before() -> None:
    originals = [text(n, 100) for n in range(20)]
    texts = [*originals, *(edited(one, 12 * (n % 5 + 1)) for n, one in enumerate(originals))]
    near = first_copies(runs(*texts), 0.7) != np.arange(len(texts))
    assert near.any()
    assert not (near & ~repeats_before(runs(*texts), 0.7)).any()
    lines = ["seed stem"] * 100 + [text(1)] * 3 + ["", "", text(2)]
    assert np.flatnonzero(~repeats_before(runs(*lines), 0.8)).tolist() == [0, 100, 103, 104, 105]


def test_documents_are_the_same_by_most_of_their_words() -> None:
    boiler = "all rights are reserved by the owner of this page and its readers"
    documents = ["a", "a", "b", "b", "c", "d", "e"]
    texts = [text(1), boiler, text(2), boiler, text(1), edited(text(2), 60), text(3)]
    same = same_documents(documents, texts, 0.8)
    assert same == {"a": "a", "b": "b", "c": "a", "d": "b", "e": "e"}


def templated(seed: int, words: int = 6, before: int = 150) -> str:
    """An instruction that all rows have, with words of their own."""
    return f"{text(1000, before)} {text(seed, words)} answer in one word"


def test_an_instruction_that_many_rows_have_does_not_make_them_copies() -> None:
    names = [f"d{n}" for n in range(41)]
    for words in (3, 6):
        rows = [templated(seed, words) for seed in range(40)]
        again = templated(3, words).upper()
        assert same_documents(names, [*rows, again], 0.8) == {n: n for n in names} | {"d40": "d3"}
        # few rows have it: it may as well be a page that was edited
        assert len({*same_documents(names[:10], rows[:10], 0.8).values()}) == 1

    telling = telling_runs(runs(*rows, again))
    assert not repeats_before(telling[:40], 0.8).any()
    assert np.flatnonzero(copies_of(telling, telling[3:4], 0.8)).tolist() == [3, 40]
    assert np.flatnonzero(said_in(telling, runs(rows[3], rows[5]), 0.8)).tolist() == [3, 5, 40]


def test_who_says_nothing_but_what_many_say_is_told_by_all_of_it() -> None:
    page = text(1, 100)
    edits = [edited(page, every) for every in range(30, 60)]  # hardly a word each
    telling = telling_runs(runs(*edits, page))
    assert [len(its) for its in telling] == [len(its) for its in runs(*edits, page)]
    assert repeats_before(telling, 0.8).sum() > 25
    # what is said a hundred times is one text, and no template
    same = [text(2)] * 100 + [f"{text(2)} {text(3, 10)}"]
    assert repeats_before(telling_runs(runs(*same)), 0.8).sum() == 100


def test_runs_are_counted_by_parts_as_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = runs(*(templated(seed, 20) for seed in range(20)), *map(text, range(20)))
    whole = [its.tolist() for its in telling_runs(rows)]
    assert max(map(len, whole[:20])) < 30
    monkeypatch.setattr("albat_core.measures.copies._AT_ONCE", 500)
    assert [its.tolist() for its in telling_runs(rows)] == whole


def test_a_picture_is_its_file_whatever_its_caption() -> None:
    dog = Example("a", "a", "s", text="a dog", image=b"one")
    assert example_content(dog) == example_content(replace(dog, text="a cat"))
    assert example_content(dog) != example_content(replace(dog, image=b"two"))
    assert example_content(replace(dog, image=None)) == "a dog"


@pytest.mark.parametrize("key", ["reasoning_content", "reasoning", "thinking"])
def test_what_was_thought_is_compared_too(key: str) -> None:
    said = ({"role": "assistant", "content": "4", key: "two and two"},)
    assert "two and two" in example_content(Example("a", "a", "s", messages=said))


def colours(*files: bytes) -> NDArray[np.uint8]:
    config = PictureConfig(resolution=64)
    return np.stack([picture_colours(prepare_picture(file, config, "")[0]) for file in files])


def saved_again(picture: Image.Image) -> list[bytes]:
    """Another format, quality, size, brightness, and other metadata."""
    brighter = np.clip(np.array(picture) * 1.03, 0, 255).astype(np.uint8)
    return [
        encoded(picture, "JPEG", quality=85),
        encoded(picture, "JPEG", quality=85, comment=b"another"),
        encoded(picture, "WEBP", quality=85),
        encoded(picture.resize((115, 115)), "PNG"),
        encoded(picture.resize((115, 115)).resize((128, 128)), "PNG"),
        encoded(brighter),
    ]


def test_a_picture_that_is_saved_again_is_a_copy() -> None:
    whole = drawing()
    found = first_pictures(colours(encoded(whole), *saved_again(whole)), 0.04)
    assert found.tolist() == [0] * 7


def test_a_drawing_that_differs_in_a_small_thing_is_no_copy() -> None:
    """Skin tones, smiles: most of the picture is the same."""
    files = [
        encoded(drawing(face=face, smile=s)) for face in ("gold", "peru") for s in (True, False)
    ]
    mean = np.abs(np.diff(colours(*files[:2]).astype(int), axis=0)).mean() / 255
    assert mean < 0.01  # so that the mean would not tell
    assert first_pictures(colours(*files), 0.04).tolist() == [0, 1, 2, 3]


def test_colours_are_the_means_of_fields() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (24, 48, 3), dtype=np.uint8)
    means = pixels.reshape(8, 3, 8, 6, 3).mean(axis=(1, 3))
    # rounded for each of both directions
    assert np.abs(picture_colours(encoded(pixels)) - means.reshape(-1)).max() <= 1


def test_a_picture_is_left_out_for_one_that_stays_alone() -> None:
    steps = np.array([[0] * 192, [9] * 192, [18] * 192, [27] * 192, [9] * 192], np.uint8)
    assert first_pictures(steps, 0.04).tolist() == [0, 0, 2, 2, 0]


def test_the_largest_difference_tells_to_the_limit() -> None:
    pictures = np.zeros((4, 192), np.uint8)
    pictures[1:, 100] = [51, 52, 255]
    assert first_pictures(pictures, 0.2).tolist() == [0, 0, 2, 3]
    assert first_pictures(pictures[[3, 1, 3]], 0.0).tolist() == [0, 1, 0]


@pytest.mark.parametrize("difference", [0.05, 0.1, 0.3])
def test_first_pictures_are_those_of_comparing_each_with_each(difference: float) -> None:
    generator = np.random.default_rng(3)
    some = generator.integers(0, 256, (40, 192))
    shifts = generator.integers(-40, 41, (400, 1)) + generator.integers(-3, 4, (400, 192))
    pictures = np.clip(some[generator.integers(0, 40, 400)] + shifts, 0, 255).astype(np.uint8)
    kept: list[int] = []
    expected = []
    for place, one in enumerate(pictures.astype(int)):
        near = (k for k in kept if np.abs(one - pictures[k]).max() <= 255 * difference)
        expected.append(next(near, place))
        if expected[-1] == place:
            kept.append(place)
    assert 40 <= len(kept) < 400
    assert first_pictures(pictures, difference).tolist() == expected
