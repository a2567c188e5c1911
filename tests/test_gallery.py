"""The gallery's pages are complete in themselves, and say what docs/gallery.md tells of them."""

import html
import re
from pathlib import Path

import pytest

from bench.gallery import LARGEST, PAGES

GALLERY = (PAGES.parent / "gallery.md").read_text()
FOUND = sorted(PAGES.glob("*.html"))


def test_each_page_is_linked_to_and_each_link_is_a_page() -> None:
    assert {f"gallery/{page.name}" for page in FOUND} == set(
        re.findall(r"\]\((gallery/\w+\.html)\)", GALLERY)
    )


@pytest.mark.parametrize("page", FOUND, ids=lambda page: page.stem)
def test_a_page_loads_nothing_and_names_no_place_of_a_machine(page: Path) -> None:
    text = page.read_text("utf-8")
    assert len(text.encode()) < LARGEST
    targets = re.findall(r"""(?:\bsrc=|\bhref=|url\()["']?([^"'\s>)]+)""", text)
    assert targets
    assert [target for target in targets if not target.startswith(("data:", "#"))] == []
    shown = re.sub(r"base64,[\w+/=]+", "", text)
    assert not re.search(r"/(home|root|tmp|work|Users)/", shown)


def test_the_figures_that_are_told_stand_in_the_page() -> None:
    """A page that is made anew may say something else than what is told of it."""
    for page in FOUND:
        after = GALLERY.partition(f"(gallery/{page.name})")[2].partition("](gallery/")[0]
        text = html.unescape(re.sub(r"<[^>]+>", " ", page.read_text("utf-8")))
        for figure in re.findall(r"\b0\.\d{3,}", after):
            assert figure in text, f"{page.name} does not say {figure}"
