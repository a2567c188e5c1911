"""Pages of runs over http: those of linked output folders, to this machine, and nothing else."""

from pathlib import Path

import pytest
from starlette.applications import Starlette
from starlette.testclient import TestClient

from albat_core.report.content import Interval, PixelError
from albat_core.report.markdown import pixel_table
from flows.local import showing
from flows.pages import link

API = "http://127.0.0.1:4200/api"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of links, as a run of `albat up` finds it in its environment."""
    pages = tmp_path / "up" / "pages"
    pages.mkdir(parents=True)
    monkeypatch.setenv(showing.SETTING, str(pages))
    monkeypatch.setenv("PREFECT_API_URL", API)
    return pages


@pytest.fixture
def report(tmp_path: Path) -> Path:
    page = tmp_path / "runs" / "toy" / "report.html"
    page.parent.mkdir(parents=True)
    page.write_text("<h1>toy</h1>")
    (tmp_path / "runs" / "secret.html").write_text("of nobody's run")
    return page


@pytest.fixture
def browser(folder: Path) -> TestClient:
    app = Starlette(routes=[showing.pages_in(str(folder))])
    return TestClient(app, base_url="http://127.0.0.1:4200")


def test_a_page_of_a_run_opens_at_its_address(browser: TestClient, report: Path) -> None:
    address = link(str(report))
    assert address.startswith("http://127.0.0.1:4200/albat/toy-")
    assert browser.get(address).text == "<h1>toy</h1>"
    report.write_text("<h1>again</h1>", encoding="utf-8")
    assert link(str(report)) == address
    assert browser.get(address).text == "<h1>again</h1>"


def test_runs_of_one_name_in_two_places_are_told_apart(
    browser: TestClient, report: Path, tmp_path: Path
) -> None:
    other = tmp_path / "elsewhere" / "toy" / "report.html"
    other.parent.mkdir(parents=True)
    other.write_text("other")
    assert browser.get(link(str(other))).text == "other"
    assert browser.get(link(str(report))).text == "<h1>toy</h1>"


@pytest.mark.parametrize(
    "path", ["", "/..", "/../secret.html", "/%2e%2e/secret.html", "/none.html"]
)
def test_nothing_beside_output_folders_is_served(
    browser: TestClient, report: Path, path: str
) -> None:
    folder = link(str(report)).rpartition("/")[0]
    assert browser.get(f"{folder}{path}").status_code == 404
    assert browser.get("/albat/").status_code == 404
    assert browser.get("/albat/%2e%2e/up.json").status_code == 404


def test_another_name_of_this_machine_is_refused(browser: TestClient, report: Path) -> None:
    path = link(str(report)).removeprefix("http://127.0.0.1:4200")
    assert browser.get(path, headers={"host": "evil.example:4200"}).status_code == 400
    assert browser.get(path, headers={"host": "localhost:4200"}).status_code == 200


def test_without_a_server_here_the_file_is_named(
    report: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert link("s3://bucket/runs/toy/report.html") == "s3://bucket/runs/toy/report.html"
    folder.rmdir()
    assert link(str(report)) == report.as_uri()
    monkeypatch.delenv(showing.SETTING)
    assert link(str(report)) == report.as_uri()


def test_errors_of_pixels_are_a_table_of_the_arms() -> None:
    def interval(value: float) -> Interval:
        return Interval(value=value, low=value - 0.01, high=value + 0.01)

    alone = PixelError(
        name="adaptation_only", label="Adaptation data only", error=interval(0.07), pictures=30
    )
    mixed = PixelError(
        name="albat", label="ALBAT", error=interval(0.05), gain=interval(0.02), pictures=30
    )
    rows = pixel_table([alone, mixed]).splitlines()[2:]
    assert rows == [
        "| Adaptation data only | 0.0700 | 0.0600 to 0.0800 |   |   |",
        "| **ALBAT** | 0.0500 | 0.0400 to 0.0600 | +0.0200 | 0.0100 to 0.0300 |",
    ]
