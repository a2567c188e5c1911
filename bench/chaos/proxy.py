"""A server between a client and another on this machine, which changes what that answers."""

import http.client
import select
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

_NOT_PASSED_ON = {"connection", "expect", "content-length", "transfer-encoding", "keep-alive"}
_RESET = struct.pack("ii", 1, 0)  # a socket closed with this in SO_LINGER is reset


@dataclass(frozen=True)
class Asked:
    """One request.

    Args:
        method: of it.
        path: with the query.
    """

    method: str
    path: str


@dataclass
class Answer:
    """One answer, as it is sent.

    Args:
        status: of HTTP.
        body: of it.
        headers: but the length.
        length: what is said of the body; None: the truth.
        cut: bytes of the body after which the connection is reset; None: all is sent.
        gone: whether the connection is reset in place of an answer.
    """

    status: int
    body: bytes = b""
    headers: list[tuple[str, str]] = field(default_factory=list)
    length: int | None = None
    cut: int | None = None
    gone: bool = False


_TUNNEL = Answer(101)
"""To who asks for a web socket: bytes are passed both ways from then on."""

Ask = Callable[[], Answer]
Change = Callable[[Asked, Ask], Answer]
"""Gives an answer to a request: what the server says when it is asked, changed, or none of it."""


def unchanged(_: Asked, ask: Ask) -> Answer:
    """Answer what the server does."""
    return ask()


class Proxy(ThreadingHTTPServer):
    """Passes requests on to a server; ``change`` may be set at any time.

    ``met`` has the requests that were answered with anything but what the server said.

    Args:
        address: of the server, ``http://host:port``.
    """

    daemon_threads = True

    def __init__(self, address: str) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.behind = urlsplit(address)
        self.met: list[Asked] = []
        self.change: Change = unchanged

    @property
    def address(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self.server_address[1]}"

    @contextmanager
    def changing(self, change: Change) -> Iterator[None]:
        """Change answers while the context lasts; ``met`` begins anew."""
        self.met, self.change = [], change
        try:
            yield
        finally:
            self.change = unchanged

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing: clients are killed, and connections cut."""


@contextmanager
def between(address: str) -> Iterator[Proxy]:
    """Serve while the context lasts."""
    proxy = Proxy(address)
    serving = threading.Thread(target=proxy.serve_forever, kwargs={"poll_interval": 0.05})
    serving.start()
    try:
        yield proxy
    finally:
        proxy.shutdown()
        serving.join()
        proxy.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Proxy

    def log_message(self, format: str, *args: Any) -> None:
        """Log nothing."""

    def _respond(self) -> None:
        asked = Asked(self.command, self.path)
        said: list[Answer] = []

        def ask() -> Answer:
            said.append(_TUNNEL if self.headers.get("Upgrade") else self._asked(body))
            return said[-1]

        body = self._body()
        answer = self.server.change(asked, ask)
        if not any(answer is each for each in said):
            self.server.met.append(asked)
        if answer.status == _TUNNEL.status:
            self._tunnel()
        else:
            self._send(answer)

    def _asked(self, body: bytes) -> Answer:
        """Return what the server says."""
        behind = http.client.HTTPConnection(self.server.behind.netloc, timeout=60)
        headers = {n: v for n, v in self.headers.items() if n.lower() not in _NOT_PASSED_ON}
        if body or self.command in ("PUT", "POST", "PATCH"):
            headers["Content-Length"] = str(len(body))
        try:
            behind.request(self.command, self.path, body, headers)
            got = behind.getresponse()
            said = got.headers.get("Content-Length", 0)
            length = int(said) if self.command == "HEAD" else None
            kept = [(n, v) for n, v in got.getheaders() if n.lower() not in _NOT_PASSED_ON]
            return Answer(got.status, got.read(), kept, length)
        except (OSError, http.client.HTTPException):
            return Answer(502, gone=True)
        finally:
            behind.close()

    def _body(self) -> bytes:
        if "chunked" not in self.headers.get("Transfer-Encoding", ""):
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        parts = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def _send(self, answer: Answer) -> None:
        if answer.gone:
            self._reset()
            return
        self.send_response_only(answer.status)
        for name, value in answer.headers:
            self.send_header(name, value)
        told = len(answer.body) if answer.length is None else answer.length
        if answer.status not in (204, 304):
            self.send_header("Content-Length", str(told))
        self.end_headers()
        if self.command == "HEAD":
            return
        self.wfile.write(answer.body[: answer.cut])
        self.wfile.flush()
        if answer.cut is not None and answer.cut < len(answer.body):
            self._reset()
        elif told != len(answer.body):
            self.close_connection = True

    def _reset(self) -> None:
        self.close_connection = True
        time.sleep(0.02)  # so that what was sent before is read
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)

    def _tunnel(self) -> None:
        """Pass bytes both ways, as web sockets want it."""
        self.close_connection = True
        place = (self.server.behind.hostname, self.server.behind.port)
        with suppress(OSError), socket.create_connection(place) as behind:
            lines = [f"{self.command} {self.path} HTTP/1.1"]
            lines += [f"{name}: {value}" for name, value in self.headers.items()]
            behind.sendall("\r\n".join([*lines, "", ""]).encode())
            ends = {self.connection: behind, behind: self.connection}
            while True:
                for end in select.select(list(ends), [], [])[0]:
                    if not (block := end.recv(1 << 16)):
                        return
                    ends[end].sendall(block)

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = do_PATCH = _respond  # noqa: N815
