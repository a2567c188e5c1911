"""What a run shows on Prefect's pages, where its server does not take it."""

import logging

import httpx
import pytest

from flows import pages

ASKED = httpx.Request("POST", "http://there/api/artifacts/")


def failing(status: int) -> httpx.HTTPStatusError:
    return httpx.HTTPStatusError("fails", request=ASKED, response=httpx.Response(status))


@pytest.mark.parametrize(
    ("error", "tried"),
    [
        (httpx.ConnectError("refused"), ["toy-verdict"]),
        (failing(503), ["toy-verdict"]),
        (failing(500), ["toy-verdict", "toy-results"]),
        (ValueError("of the content"), ["toy-verdict", "toy-results"]),
    ],
)
def test_a_server_that_does_not_answer_is_waited_for_once(
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    error: Exception,
    tried: list[str],
) -> None:
    asked: list[str] = []

    def create(_: str, key: str, description: str) -> None:
        del description
        asked.append(key)
        raise error

    monkeypatch.setattr(pages, "get_run_logger", logging.getLogger)  # no run goes on here
    pages._show("toy", ("verdict", create, "better"), ("results", create, "1 %"))
    assert asked == tried
    assert len(caplog.messages) == len(tried)
    assert all("cannot be shown" in message for message in caplog.messages)
