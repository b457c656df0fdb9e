"""Text and JSON from outside made safe to tell and to read; one line of log for an event."""

from __future__ import annotations

import base64
import json
import logging
import math
import re
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote, quote_plus

MAX_JSON_BYTES, MAX_OFFER_BYTES = 4 * 2**20, 16 * 2**20
# Far more than any message needs; a megabyte of empty lists would fill a hundred.
JSON_DEPTH, MAX_JSON_PARTS = 32, 100_000
log = logging.getLogger("ltx_worker")


def to_number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan


class Redactor:
    """Blots secrets out of foreign text: plain, escaped, URL-encoded or in base64."""

    def __init__(self) -> None:
        self.forms = set[str]()
        self.secrets: re.Pattern[str] | None = None

    def hide(self, secrets: Iterable[str]) -> None:
        """From here on these too."""
        forms = set(self.forms)
        for secret in secrets:
            forms |= {secret, json.dumps(secret)[1:-1], repr(secret)[1:-1]}
            forms |= {quote(secret, safe=safe) for safe in ("", "/", "!'()*~")}
            forms.add(quote_plus(secret))
            for encode in (base64.b64encode, base64.urlsafe_b64encode):
                forms.add(encode(secret.encode()).decode().rstrip("="))
        longest_first = sorted(map(re.escape, forms), key=len, reverse=True)
        self.forms = forms
        self.secrets = re.compile("|".join(longest_first), re.IGNORECASE) if forms else None

    def __call__(self, text: str) -> str:
        text = re.sub(r"://[^/\s]*@", "://***@", text)
        return self.secrets.sub("***", text) if self.secrets else text


# The one thing that all texts pass through, hence global; main() tells it the secrets.
redact = Redactor()


def one_line(text: object, limit: int = 300) -> str:
    """Foreign text made safe to tell: no secrets, no control characters, at most `limit` long.

    Secrets go first, since a cut could leave a part of one that nobody recognizes.
    """
    line = redact(str(text))
    shown = "".join(char if char.isprintable() else " " for char in line[:limit])
    return shown if len(line) <= limit else f"{shown}…"


def parse_utc(value: object) -> float | None:
    """Seconds since 1970 from an ISO 8601 time such as 2026-11-23T08:00:00Z."""
    try:
        moment = datetime.fromisoformat(str(value).replace("Z", "+00:00"))
    except ValueError:
        return None
    return moment.timestamp() if moment.tzinfo else None


def format_utc(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def is_text(text: str) -> bool:
    """False for lone surrogates and NUL, which JSON can carry but no text encoder can read."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return "\0" not in text


def as_dict(value: object) -> dict[str, Any]:
    """Foreign JSON where an object is due: anything else counts as an empty one."""
    return value if isinstance(value, dict) else {}


def as_list(value: object) -> list[Any]:
    return value if isinstance(value, list) else []


def prune(value: Any, depth: int = JSON_DEPTH) -> Any:
    """Empties what nests deeper than any message has reason to, before recursion fails on it."""
    children = value.values() if isinstance(value, dict) else as_list(value)
    if children and not depth:
        value.clear()
    for child in children:
        if isinstance(child, (dict, list)):
            prune(child, depth - 1)
    return value


def log_event(
    event: str, sentence: str = "", level: int = logging.INFO, /, **fields: object
) -> None:
    """One log line: the event, its fields, a sentence for people."""
    parts = [event, *(f"{name}={value}" for name, value in fields.items()), sentence]
    log.log(level, "%s", " ".join(filter(None, parts)))
