"""Rows by address: web servers, with and without parts of files, and datasets of the Hub."""

import gzip
import json
import os
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from importlib import import_module
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from albat_core.errors import InputError, MissingDependencyError, TransientError
from albat_core.sources.config import SourceConfig
from albat_core.sources.files import find_files, left_out
from albat_core.sources.rows import read_rows
from albat_core.store import storage
from flows.config import load_config
from tests.toys import rewrite, topic_rows, write_jsonl, write_run

ROWS = topic_rows("plants", 30)


class Whole(SimpleHTTPRequestHandler):
    """A web server as Python has it, which gives whole files alone; it says nothing."""

    def log_message(self, *_: object) -> None:
        pass


class Parts(Whole):
    """One that gives parts of files, and a tag in place of a date."""

    def send_head(self):
        path = Path(self.translate_path(self.path))
        if not path.is_file():
            return super().send_head()
        content = path.read_bytes()
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        last = len(content) - 1
        start = int(asked[1]) if asked else 0
        end = min(int(asked[2] or last), last) if asked else last
        self.send_response(206 if asked else 200)
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(end - start + 1))
        self.send_header("ETag", f'"{hash(content)}"')
        if asked:
            self.send_header("Content-Range", f"bytes {start}-{end}/{len(content)}")
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content[start : end + 1])
        return None


@pytest.fixture(params=[Whole, Parts])
def address(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """Address of the test's folder on a server of this machine."""
    with served(request.param, tmp_path) as address:
        yield address


@contextmanager
def served(handler: type[Whole], folder: Path) -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(handler, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def texts(source: SourceConfig) -> list[str]:
    return [row.text for file in find_files(source) for row in read_rows(file)]


def source(path: str, **changes: object) -> SourceConfig:
    return SourceConfig(path=path, id_column="id", document_column="doc", **changes)


@pytest.mark.parametrize("query", ["", "?token=secret&part=1"])
def test_lines_come_from_a_web_server(address: str, tmp_path: Path, query: str) -> None:
    path = write_jsonl(tmp_path / "rows.jsonl", ROWS)
    (tmp_path / "rows.jsonl.gz").write_bytes(gzip.compress(path.read_bytes()))
    for name in ("rows.jsonl", "rows.jsonl.gz"):
        read = source(f"{address}/{name}{query}")
        assert texts(read) == [row["text"] for row in ROWS]
        (file,) = find_files(read)
        assert file.names == (name,)
        assert file.label == "rows"


def test_what_is_large_comes_in_parts(tmp_path: Path) -> None:
    rows = [row | {"text": row["text"] + "x" * 300_000} for row in ROWS]  # over fsspec's block
    write_jsonl(tmp_path / "rows.jsonl", rows)
    table = pa.Table.from_pylist(rows)
    pq.write_table(table, tmp_path / "rows.parquet", compression="none", use_dictionary=False)
    with served(Parts, tmp_path) as address:
        for name in ("rows.jsonl", "rows.parquet"):
            assert texts(source(f"{address}/{name}")) == [row["text"] for row in rows]
    with served(Whole, tmp_path) as address:
        for name in ("rows.jsonl", "rows.parquet"):
            with pytest.raises(InputError, match="gives parts of a file") as raised:
                texts(source(f"{address}/{name}"))
            assert raised.value.remedy == "download the file"


def test_a_changed_file_of_a_web_server_is_another(address: str, tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "rows.jsonl", [{"id": "a", "doc": "a", "text": "one"}])
    asked = source(f"{address}/rows.jsonl")
    first = find_files(asked)[0].fingerprint
    assert find_files(asked)[0].fingerprint == first
    write_jsonl(path, [{"id": "a", "doc": "a", "text": "two"}])  # of the same length
    os.utime(path, (0, 0))
    storage.filesystem(address)[0].invalidate_cache()
    assert find_files(asked)[0].fingerprint != first


def test_addresses_that_differ_in_their_queries_are_two_files(address: str, tmp_path: Path) -> None:
    write_jsonl(tmp_path / "rows.jsonl", ROWS)
    paths = (f"{address}/rows.jsonl?token=one", f"{address}/rows.jsonl?token=two")
    names = [file.names[0] for file in find_files(SourceConfig(path=paths))]
    assert len(set(names)) == 2
    assert not [name for name in names if "token=one" in name or "token=two" in name]


def test_what_a_web_server_has_not_is_told(address: str) -> None:
    with pytest.raises(InputError, match="found none"):
        find_files(source(f"{address}/none.jsonl"))
    with pytest.raises(TransientError, match="did not answer"):
        find_files(source("http://127.0.0.1:9/rows.jsonl"))


@pytest.mark.parametrize(("scheme", "extra"), [("gs", "gcs"), ("az", "azure")])
def test_a_client_that_is_not_installed_is_named(
    scheme: str, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    clients = import_module("fsspec.registry")
    named = clients.known_implementations[scheme] | {"class": "no_such.FileSystem"}
    monkeypatch.setitem(clients.known_implementations, scheme, named)
    monkeypatch.setattr(clients, "_registry", {})
    with pytest.raises(MissingDependencyError) as raised:
        find_files(source(f"{scheme}://bucket/rows.jsonl"))
    assert f"albat[{extra}]" in raised.value.remedy


CARD = """\
---
configs:
- config_name: plants
  data_files:
  - split: train
    path: data/plants-*.jsonl
  - split: test
    path: data/heldout.jsonl
- config_name: ships
  data_files: data/ships.jsonl
---
"""


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    """A folder that is laid out as a repository of the Hub, of two configurations."""
    folder = tmp_path / "garden"
    write_jsonl(folder / "data" / "plants-0.jsonl", ROWS[:10])
    write_jsonl(folder / "data" / "plants-1.jsonl", ROWS[10:20])
    write_jsonl(folder / "data" / "heldout.jsonl", ROWS[20:])
    write_jsonl(folder / "data" / "ships.jsonl", topic_rows("ships", 4))
    (folder / "README.md").write_text(CARD)
    return folder


def test_a_split_is_what_datasets_says(dataset: Path) -> None:
    asked = source(str(dataset), subset="plants", split="train")
    files = find_files(asked)
    assert [file.names[0] for file in files] == ["data/plants-0.jsonl", "data/plants-1.jsonl"]
    assert {file.label for file in files} == {"garden"}
    assert texts(asked) == [row["text"] for row in ROWS[:20]]
    assert texts(source(str(dataset), subset="plants", split="test")) == [
        row["text"] for row in ROWS[20:]
    ]
    assert len(texts(source(str(dataset), subset="ships"))) == 4  # its only split
    assert left_out(asked, files) == []


def test_a_local_dataset_is_the_same_however_its_folder_is_written(
    dataset: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    named = dataset.rename(dataset.with_name("user@host"))
    monkeypatch.chdir(named.parent)
    for path in (str(named), "user@host"):
        files = find_files(source(path, subset="plants", split="train"))
        assert [file.names[0] for file in files] == ["data/plants-0.jsonl", "data/plants-1.jsonl"]


@pytest.mark.parametrize(
    ("asked", "said", "remedy"),
    [
        ({"split": "train"}, "Config name is missing", "'plants', 'ships'"),
        ({"subset": "trees"}, "'trees' not found", "'plants', 'ships'"),
        ({"subset": "plants"}, "one of the splits train, test, got none", "set split"),
        ({"subset": "ships", "split": "test"}, "one of the splits train, got test", "set split"),
    ],
)
def test_what_a_dataset_has_not_is_told(
    dataset: Path, asked: dict[str, str], said: str, remedy: str
) -> None:
    with pytest.raises(InputError, match=re.escape(said)) as raised:
        find_files(source(str(dataset), **asked))
    assert remedy in raised.value.remedy


def test_a_configuration_names_datasets_by_folder_or_by_name(dataset: Path) -> None:
    config = write_run(dataset.parent)
    for path, read in (("garden", str(dataset)), ("owner/garden", "owner/garden")):
        corpus = {"path": path, "subset": "plants", "split": "train"}
        (found,) = load_config(str(rewrite(config, {"corpus": corpus}))).corpus
        assert found.paths == (read,)
    assert json.loads(found.model_dump_json())["split"] == "train"


def test_a_file_that_is_asked_for_a_split_is_told(dataset: Path) -> None:
    with pytest.raises(InputError, match="expected a dataset, got a file") as raised:
        find_files(source(str(dataset / "data" / "ships.jsonl"), split="train"))
    assert "leave split and subset out" in raised.value.remedy
    with pytest.raises(InputError) as raised:
        find_files(source(str(dataset.parent / "owner" / "name")))
    assert "if owner/name of the Hub is meant, give its split" in raised.value.remedy
