"""Patterns of faults of an S3 server: what it answers, to which requests."""

import re
import threading
import time
from collections.abc import Callable
from dataclasses import replace

import numpy as np

from bench.chaos.proxy import Answer, Ask, Asked, Change

Which = Callable[[Asked], bool]
Made = Callable[[np.random.Generator], Change]

_ERROR = '<?xml version="1.0"?><Error><Code>{0}</Code><Message>{0}</Message></Error>'
_KEY = re.compile(rb"<Contents>.*?</Contents>", re.DOTALL)


def lists(asked: Asked) -> bool:
    """Tell whether a listing is asked for."""
    return asked.method == "GET" and "list-type" in asked.path


def lists_artifacts(asked: Asked) -> bool:
    """Tell whether a listing of artifacts is asked for."""
    return lists(asked) and "artifacts" in asked.path


def reads(asked: Asked) -> bool:
    """Tell whether an object is read."""
    return asked.method == "GET" and not lists(asked)


def reads_artifacts(asked: Asked) -> bool:
    """Tell whether a file of an artifact is read."""
    return reads(asked) and "/artifacts/" in asked.path


def writes(asked: Asked) -> bool:
    """Tell whether an object is written."""
    return asked.method in ("PUT", "POST")


def anything(_: Asked) -> bool:
    """Tell that it is asked for something."""
    return True


def now_and_then(which: Which, share: float, fault: Callable[[Ask], Answer]) -> Made:
    """Meet a share of some requests with a fault, the first of them always."""

    def made(draw: np.random.Generator) -> Change:
        lock = threading.Lock()
        met: list[Asked] = []

        def change(asked: Asked, ask: Ask) -> Answer:
            if not which(asked):
                return ask()
            with lock:
                hit = not met or draw.random() < share
                met.append(asked)
            return fault(ask) if hit else ask()

        return change

    return made


def after(most: int, count: int | None, fault: Callable[[Ask], Answer]) -> Made:
    """Meet so many requests in a row with a fault, from one of the first on; None: all that come.

    Args:
        most: requests before the first that is met.
        count: that are met.
        fault: which.
    """

    def made(draw: np.random.Generator) -> Change:
        lock, seen, first = threading.Lock(), [0], int(draw.integers(most))

        def change(asked: Asked, ask: Ask) -> Answer:
            with lock:
                seen[0] += 1
                there = seen[0] - first
            return fault(ask) if there > 0 and (count is None or there <= count) else ask()

        return change

    return made


def refuses(status: int, code: str) -> Callable[[Ask], Answer]:
    """Answer with an error."""
    body = _ERROR.format(code).encode()
    return lambda _: Answer(status, body, [("Content-Type", "application/xml")])


def gone(_: Ask) -> Answer:
    """Cut the connection in place of an answer."""
    return Answer(500, gone=True)


def late(seconds: float) -> Callable[[Ask], Answer]:
    """Answer after some seconds."""

    def fault(ask: Ask) -> Answer:
        time.sleep(seconds)
        return replace(ask())  # another answer than the server's: it was met

    return fault


def altered(alter: Callable[[Answer], Answer]) -> Callable[[Ask], Answer]:
    """Answer what the server says, altered where it says anything."""

    def fault(ask: Ask) -> Answer:
        answer = ask()
        return alter(answer) if answer.body else answer

    return fault


def _halved(answer: Answer) -> Answer:
    return replace(answer, body=answer.body[: len(answer.body) // 2])


def cut_in_middle(answer: Answer) -> Answer:
    """Reset the connection in the middle of a body."""
    return replace(answer, cut=len(answer.body) // 2)


def _short(answer: Answer) -> Answer:
    return replace(answer, body=answer.body[: len(answer.body) // 2], length=len(answer.body))


def _long(answer: Answer) -> Answer:
    return replace(answer, length=len(answer.body) // 2)


def _emptied(answer: Answer) -> Answer:
    return replace(answer, body=b"")


def _flipped(answer: Answer) -> Answer:
    at = len(answer.body) // 2
    return replace(
        answer, body=answer.body[:at] + bytes([answer.body[at] ^ 4]) + answer.body[at + 1 :]
    )


def _stale(answer: Answer) -> Answer:
    keys = _KEY.findall(answer.body)
    body = answer.body
    for key in keys[len(keys) // 2 :]:
        body = body.replace(key, b"")
    return replace(answer, body=body)


def _endless(answer: Answer) -> Answer:
    """Say that there is more, and not where it goes on."""
    body = answer.body.replace(b"<IsTruncated>false<", b"<IsTruncated>true<")
    return _stale(replace(answer, body=body))


def page_to_log_in(answer: Answer) -> Answer:
    """Answer as a network does that wants a person to log in."""
    return replace(answer, body=b"<html><body>Please log in</body></html>")


def lost_answer(ask: Ask) -> Answer:
    """Do what is asked, and answer that it failed."""
    ask()
    return refuses(500, "InternalError")(ask)


def lost_write(ask: Ask) -> Answer:
    """Do nothing, and answer that it was done."""
    del ask
    return Answer(200, headers=[("ETag", '"d41d8cd98f00b204e9800998ecf8427e"')])


PATTERNS: dict[str, Made] = {
    "500 to one request in six": now_and_then(anything, 1 / 6, refuses(500, "InternalError")),
    "503 to one request in six": now_and_then(anything, 1 / 6, refuses(503, "SlowDown")),
    "500 to 12 requests in a row": after(200, 12, refuses(500, "InternalError")),
    "503 to 40 requests in a row": after(200, 40, refuses(503, "SlowDown")),
    "503 from some request on": after(200, None, refuses(503, "SlowDown")),
    "one connection in eight cut before an answer": now_and_then(anything, 1 / 8, gone),
    "no connection from some request on": after(200, None, gone),
    "one body in four cut in its middle": now_and_then(reads, 1 / 4, altered(cut_in_middle)),
    "one body in four halved, with a length that fits": now_and_then(
        reads_artifacts, 1 / 4, altered(_halved)
    ),
    "one body in four shorter than its length says": now_and_then(reads, 1 / 4, altered(_short)),
    "one body in four longer than its length says": now_and_then(reads, 1 / 4, altered(_long)),
    "one body in four empty": now_and_then(reads_artifacts, 1 / 4, altered(_emptied)),
    "a bit flipped in one body of an artifact in four": now_and_then(
        reads_artifacts, 1 / 4, altered(_flipped)
    ),
    "one listing in three stale, without half of its keys": now_and_then(
        lists_artifacts, 1 / 3, altered(_stale)
    ),
    "one listing in three that ends before its end": now_and_then(
        lists_artifacts, 1 / 3, altered(_endless)
    ),
    "one listing in three is a page to log in": now_and_then(lists, 1 / 3, altered(page_to_log_in)),
    "one answer in thirty 3 s late": now_and_then(anything, 1 / 30, late(3.0)),
    "403 to one request in forty": now_and_then(anything, 1 / 40, refuses(403, "AccessDenied")),
    "404 to one read in six": now_and_then(reads, 1 / 6, refuses(404, "NoSuchKey")),
    "a damaged .gz": now_and_then(
        lambda asked: reads(asked) and ".gz" in asked.path, 1.0, altered(_flipped)
    ),
    "one write in six done, its answer lost": now_and_then(writes, 1 / 6, lost_answer),
    "one write in ten acknowledged and lost": now_and_then(writes, 1 / 10, lost_write),
    "the corpus's bodies halved, with a length that fits": now_and_then(
        lambda asked: reads(asked) and "/corpus/" in asked.path, 1.0, altered(_halved)
    ),
}
"""Changes by what they do, each made by a generator that draws the requests it meets."""
