"""Secrets in addresses, left out of all that is shown, logged or kept; the address itself stays."""

import logging
import re
from typing import Any

_LEFT_OUT = "***"
_USER = re.compile(
    r"(?<=://)(?:"
    r"[^\s/?#'\"<>]+"  # user, password or token before the host
    r"|[^\s/@:'\"<>]+:(?!\d+(?:[/?#]|$))[^\s@'\"<>]*"  # a password with slashes; no port
    r")@"
)
_NAMES = (
    r"[\w.-]{0,64}(?:token|secret|signature|passw|credential|api[_-]?key|access[_-]?key)[\w.-]{0,64}",
    r"x-(?:amz|goog|oss|cos)-[\w-]+",
    r"sig|key|auth|pwd|pass|policy|expires|key-pair-id|googleaccessid",
    r"jwt|code|session|sas|ticket|authkey|rlkey|dl_key|authorization|hdnea",
    r"s[eprtv]|spr|sk[a-z]{1,3}|skoid|sktid",  # of a signature of Azure's
)
_PARAMETER = re.compile(rf"(?<=[?#&;])((?:{'|'.join(_NAMES)})=)[^&;#\s'\"<>]+", re.IGNORECASE)
_OURS = frozenset({"albat_core", "tasks", "flows"})
"""Packages whose log lines have no secrets."""
_ADDRESS = re.compile(r"[a-z][a-z0-9+.-]*://[^\n]+", re.IGNORECASE)


def redacted(text: str) -> str:
    """Return a text without the secrets of the addresses in it.

    Left out are user and password, and the parameters of a query that sign or admit it: a
    signature that was made anew gives the same text.
    """
    if "://" not in text and "=" not in text:
        return text
    return _PARAMETER.sub(rf"\1{_LEFT_OUT}", _USER.sub(f"{_LEFT_OUT}@", text))


def without_secrets(value: Any) -> Any:
    """Return JSON values whose strings, where they are addresses, have no secrets.

    Other strings stay as they are: what a template or a row says may look like a secret, also a
    template that is an address.
    """
    if isinstance(value, str):
        return redacted(value) if _ADDRESS.fullmatch(value) else value
    if isinstance(value, dict):
        return {
            name: each if name.endswith("template") else without_secrets(each)
            for name, each in value.items()
        }
    if isinstance(value, list | tuple):
        return type(value)(without_secrets(each) for each in value)
    return value


def _redact_logs() -> None:
    """Leave the secrets out of all that this project's loggers are told from now on."""
    make = logging.getLogRecordFactory()

    def redacting(*args: Any, **kwargs: Any) -> logging.LogRecord:
        record = make(*args, **kwargs)
        if record.name.partition(".")[0] in _OURS:
            record.msg, record.args = redacted(record.getMessage()), None
        return record

    logging.setLogRecordFactory(redacting)


_redact_logs()
