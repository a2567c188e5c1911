"""A run with everything on an S3 server that fails: then repeated on one that does not."""

import gzip
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import count
from pathlib import Path

from albat_core.runs.config import RunConfig
from bench.chaos.children import Moment, in_child
from bench.chaos.flips import quick
from bench.chaos.kills import judged, killed_until_done, moments
from bench.chaos.outcome import NOT_MET, Draw, Trial
from bench.chaos.proxy import Proxy, between
from bench.chaos.storms import PATTERNS
from bench.chaos.toy import Wanted, at, differences, undisturbed, write_toy
from tests.end_to_end.s3_server import BUCKET, served

_ATTEMPTS = "2"  # in place of botocore's five, so that more faults reach albat


@dataclass
class Bucket:
    """A bucket behind a proxy, with a run's inputs.

    Args:
        folder: with its objects as files.
        config: of the run, its inputs in the bucket.
        proxy: that stands before it.
    """

    folder: Path
    config: RunConfig
    proxy: Proxy
    _number: Iterator[int] = field(default_factory=count)

    def place(self) -> tuple[RunConfig, RunConfig]:
        """Return the run at a place of its own: as it runs, and as files to look at."""
        name = f"run-{next(self._number)}"
        os.environ["XDG_CACHE_HOME"] = str(self.folder.parent / f"cache-{name}")
        return at(self.config, f"s3://{BUCKET}/{name}"), at(self.config, str(self.folder / name))


@contextmanager
def bucket(folder: Path) -> Iterator[Bucket]:
    """Serve a bucket with a run's inputs, one of them packed."""
    import s3fs  # noqa: F401 - before children are forked

    before = dict(os.environ)
    with served(folder) as server, between(server.address) as proxy:
        columns = {"id_column": "id", "document_column": "doc"}
        inputs = server.folder / "inputs"
        local = write_toy(inputs, corpus=[{"path": "corpus/*", **columns}])
        ships = inputs / "corpus" / "ships.jsonl"
        ships.with_suffix(".jsonl.gz").write_bytes(gzip.compress(ships.read_bytes(), mtime=0))
        ships.unlink()
        said = local.model_dump_json().replace(str(server.folder), f"s3://{BUCKET}")
        os.environ |= server.variables | {
            "AWS_ENDPOINT_URL": proxy.address,
            "AWS_MAX_ATTEMPTS": _ATTEMPTS,
            "TMPDIR": str(folder),
        }
        try:
            yield Bucket(server.folder, RunConfig.model_validate_json(said), proxy)
        finally:
            os.environ.clear()
            os.environ.update(before)


def wanted_of(there: Bucket) -> Wanted:
    """Do the run undisturbed; return what it comes to."""
    its, look = there.place()
    return undisturbed(its, look)


def storm(
    names: Sequence[str], draw: Draw, there: Bucket, wanted: Wanted
) -> Iterator[tuple[str, Trial]]:
    """Run through each pattern, and again without it; yields its name too.

    Args:
        names: of patterns.
        draw: says which requests are met.
        there: where.
        wanted: what the run comes to undisturbed.
    """
    for name in names:
        its, look = there.place()
        with there.proxy.changing(PATTERNS[name](draw(name))):
            first = in_child(partial(quick, its))
        wrong = [first.broke] if first.broke else []
        if not there.proxy.met:
            wrong.append(NOT_MET)
        again = in_child(partial(quick, its))
        if not again.finished:
            wrong.append(again.broke or f"the repeated run ends: {again.told[0]}")
        else:
            wrong += differences(look, wanted)
        yield name, Trial(name, wrong, first.told)


def kill_on_s3(done: int, count: int, draw: Draw, there: Bucket, wanted: Wanted) -> Iterator[Trial]:
    """Kill runs whose root is the bucket; see ``kills.kill_runs``."""
    while done < count:
        when, killed = moments(draw("kills on S3", done), wanted), list[Moment]()
        while not killed:  # a run may be over before its moment
            its, look = there.place()
            killed, ended = killed_until_done(its, when, count - done)
        yield from judged(killed, ended, look, wanted)
        done += len(killed)
