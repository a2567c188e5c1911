"""Prefect's pages in a real browser, as a person sees and clicks them.

With `ALBAT_SCREENSHOTS=docs` the pictures of docs/prefect-ui.md are taken on the way.
"""

import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from albat_core.runs.config import RunConfig
from flows.local.processes import marked, stop
from tests.end_to_end.test_deployed import Deployed
from tests.pictures import write_image_run
from tests.toys import rewrite, write_run
from tests.waiting import PATIENCE

sync_api = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
PICTURES = os.environ.get("ALBAT_SCREENSHOTS")
PAGE_PATIENCE = 1000 * PATIENCE  # in milliseconds

pytestmark = [
    pytest.mark.end_to_end,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium: install Debian's package chromium"),
]
expect = sync_api.expect
expect.set_options(timeout=PAGE_PATIENCE)


@pytest.fixture
def deployed(tmp_path: Path) -> Iterator[Deployed]:
    """Everything that `albat up` starts, beside toy data; nothing of it outlives the test."""
    found = Deployed(tmp_path, {})
    write_run(tmp_path)
    try:
        found.albat("up", "--port", "0")
        yield found
    finally:
        if (tmp_path / ".albat-up" / "up.json").is_file():
            stop(marked(found.state.mark), 5)


@pytest.fixture
def page() -> Iterator["sync_api.Page"]:
    """An empty page."""
    with sync_api.sync_playwright() as playwright:
        # a container's root has no sandbox
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        opened = browser.new_page(viewport={"width": 1200, "height": 800})
        opened.set_default_timeout(PAGE_PATIENCE)
        yield opened
        browser.close()


def test_a_run_is_started_in_the_form_and_its_artifacts_are_shown(
    deployed: Deployed, page: "sync_api.Page"
) -> None:
    page.goto(deployed.state.ui + "/deployments")
    page.locator('a[href*="/deployments/deployment/"]', has_text=re.compile("^albat$")).click()
    page.get_by_role("button", name="Run", exact=True).click()
    page.get_by_text("Custom run").click()

    form = field(page, "config")
    for name, of_run in RunConfig.model_fields.items():
        title = re.compile(rf"^{name.capitalize()}( \(Optional\))?$")
        expect(form.locator(".schema-form-property__label", has_text=title)).not_to_have_count(0)
        expect(form).to_contain_text(words(of_run.description or ""))

    page.get_by_role("button", name="Submit").click()  # empty, it is told what is missing
    for missing in ("path", "adaptation"):
        expect(form).to_contain_text(f"'{missing}' is a required property")

    # what has no default, and less training than usual
    type_in(form, "Name (Optional)", "plants")
    type_in(field(form, "Backbone"), "Path", "backbone")
    type_in(field(form, "Backbone"), "Max length (Optional)", "64")
    for section, path in (("Adaptation", "adaptation.jsonl"), ("Corpus (Optional)", "corpus")):
        sources = field(form, section)
        sources.get_by_role("button", name="Add item").first.click()
        type_in(sources, "Path", path)
    for section in ("Surrogate (Optional)", "Finetune (Optional)"):
        type_in(field(form, section), "Steps (Optional)", "20")
    take(page, "form", field(form, "Name (Optional)"))
    page.get_by_role("button", name="Submit").click()

    page.wait_for_url(re.compile(r"/deployments/deployment/[^/]+$"))
    page.goto(deployed.state.ui + "/runs")  # the notice with a link is gone after five seconds
    page.locator('a[href*="/runs/flow-run/"]').first.click()
    state = page.locator(".state-badge").first
    expect(state).to_have_text(re.compile("Running|Completed"))  # it may be quicker than the page
    expect(page.get_by_text("embed").first).to_be_visible()
    take(page, "run")
    expect(state).to_have_text("Completed")

    open_artifact(page, "examples of plants")
    expect(page.get_by_text("nearest of yours").first).to_be_visible()
    take(page, "examples")
    page.go_back()
    open_artifact(page, "results of plants")
    expect(page.locator("table").first).to_contain_text("Adaptation data only")
    take(page, "artifacts")


def test_what_an_adapter_draws_is_shown_while_it_learns(
    deployed: Deployed, page: "sync_api.Page"
) -> None:
    path = write_image_run(deployed.folder / "pictures", samples={"prompts": ["a red disc"]})
    settings = yaml.safe_load(path.read_text())
    settings["finetune"] |= {"sample_every": 3}
    rewrite(path, {"finetune": settings["finetune"]})
    run = deployed.trigger("from_file/from_file", path=str(path)).raise_for_status().json()["id"]
    page.goto(f"{deployed.state.ui}/runs/flow-run/{run}")
    expect(page.locator(".state-badge").first).to_have_text("Completed")
    page.get_by_text("Artifacts", exact=True).click()
    page.mouse.move(700, 700)
    albat = page.locator('a[href*="/artifacts/artifact/"]', has_text="ALBAT, step 6").first
    for _ in range(60):  # those of tasks are below those of the run, and come into view
        page.mouse.wheel(0, 800)
        page.wait_for_timeout(500)
        if albat.is_visible():
            break
    albat.click()
    drawn = page.locator('img[src^="data:image/png"]').first
    expect(drawn).to_be_visible()
    assert drawn.evaluate("picture => picture.naturalWidth") > 0  # it could be decoded
    take(page, "samples")


def field(within: "sync_api.Page | sync_api.Locator", label: str) -> "sync_api.Locator":
    """Return the first field, or section of fields, of that label."""
    labelled = f'.schema-form-property__label:text-is("{label}")'
    return within.locator(f".schema-form-property:has(> .p-label__header {labelled})").first


def type_in(within: "sync_api.Locator", label: str, value: str) -> None:
    """Type into a field."""
    field(within, label).locator("textarea, input").first.fill(value)


def open_artifact(page: "sync_api.Page", description: str) -> None:
    """Open one of the artifacts of the run whose page is shown."""
    page.get_by_text("Artifacts", exact=True).click()
    page.locator('a[href*="/artifacts/artifact/"]', has_text=description).first.click()


def words(text: str) -> str:
    """Return a text in one line, without marks of code."""
    return " ".join(text.replace("`", "").split())


def take(page: "sync_api.Page", name: str, at: "sync_api.Locator | None" = None) -> None:
    """Take a picture for the docs where they are asked for."""
    if PICTURES:
        page.wait_for_timeout(1500)  # what moves on the page comes to rest
        if at is not None:
            at.evaluate("field => field.scrollIntoView()")
        page.screenshot(path=Path(PICTURES) / f"ui-{name}.png")
