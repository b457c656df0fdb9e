"""What a worker may send to the queue API: section by section, field by field, nothing else."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from datetime import datetime
from typing import Any

ERROR_CODES = frozenset(
    {
        "bad_job",
        "frame_unavailable",
        "frame_invalid",
        "watermark_missing",
        "comfyui_unavailable",
        "comfyui_missing_node",
        "comfyui_missing_model",
        "comfyui_rejected",
        "comfyui_failed",
        "gpu_out_of_memory",
        "clip_timeout",
        "job_timeout",
        "bad_clip",
        "media_failed",
        "upload_failed",
        "cancelled",
        "shutdown",
    }
)
STATUSES = frozenset({"idle", "busy", "draining", "degraded"})

Check = Callable[[str, Any], None]


class Refusal(Exception):
    """An answer other than 2xx, with the field at fault where a body broke the contract."""

    def __init__(self, status: int, code: str, message: str, field: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.error = {"code": code, "message": message, **({"field": field} if field else {})}


def breach(field: str, value: Any, expected: str) -> Refusal:
    message = f"{field}: expected {expected}, got {json.dumps(value)[:200]}"
    return Refusal(422, "contract", message, field)


def text(field: str, value: Any) -> None:
    if not isinstance(value, str) or not value.strip():
        raise breach(field, value, "a non-empty string")


def flag(field: str, value: Any) -> None:
    if not isinstance(value, bool):
        raise breach(field, value, "true or false")


def integer(minimum: int) -> Check:
    def check(field: str, value: Any) -> None:
        if not isinstance(value, int) or isinstance(value, bool) or value < minimum:
            raise breach(field, value, f"an integer of at least {minimum}")

    return check


def number(minimum: float, maximum: float = math.inf) -> Check:
    def check(field: str, value: Any) -> None:
        numeric = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not numeric or not minimum <= value <= maximum:
            raise breach(field, value, f"a number from {minimum:g} to {maximum:g}")

    return check


def measurements(field: str, value: Any) -> None:
    """Numbers by name; which ones is the worker's own business."""
    if not isinstance(value, dict) or not value:
        raise breach(field, value, "an object of numbers")
    for name, one in value.items():
        number(-math.inf)(f"{field}.{name}", one)


def one_of(choices: frozenset[str]) -> Check:
    def check(field: str, value: Any) -> None:
        if not isinstance(value, str) or value not in choices:
            raise breach(field, value, f"one of {sorted(choices)}")

    return check


def moment(field: str, value: Any) -> None:
    pattern = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z"
    if not isinstance(value, str) or not re.fullmatch(pattern, value):
        raise breach(field, value, "an ISO 8601 time in UTC ending in Z")
    try:
        datetime.fromisoformat(value[:19])
    except ValueError:
        raise breach(field, value, "a time that exists") from None


def web_url(field: str, value: Any) -> None:
    if not isinstance(value, str) or not re.match(r"https?://[^/\s]+/\S+$", value):
        raise breach(field, value, "an http(s) URL")


def nullable(check: Check) -> Check:
    def check_unless_null(field: str, value: Any) -> None:
        if value is not None:
            check(field, value)

    return check_unless_null


def list_of(check: Check) -> Check:
    def check_each(field: str, value: Any) -> None:
        if not isinstance(value, list) or not value:
            raise breach(field, value, "a non-empty list")
        for index, item in enumerate(value):
            check(f"{field}[{index}]", item)

    return check_each


def shape(optional: frozenset[str] = frozenset(), **fields: Check) -> Check:
    def check(field: str, value: Any) -> None:
        if not isinstance(value, dict):
            raise breach(field or "body", value, "an object")
        prefix = f"{field}." if field else ""
        for name in sorted(fields.keys() - optional - value.keys()):
            raise Refusal(422, "contract", f"{prefix}{name} is missing", prefix + name)
        for name, item in value.items():
            if name not in fields:
                raise breach(prefix + name, item, f"no field but {sorted(fields)}")
            fields[name](prefix + name, item)

    return check


REGISTER = shape(
    workerId=text,
    hostname=text,
    version=text,
    gpu=nullable(shape(name=text, vramBytes=integer(1))),
)
PROGRESS = shape(
    stage=text,
    clip=nullable(integer(0)),
    clips=nullable(integer(0)),
    step=nullable(integer(0)),
    steps=nullable(integer(0)),
    percent=nullable(number(0, 100)),
    etaSec=nullable(number(0)),
    lastProgressAt=nullable(moment),
)
HEARTBEAT = shape(
    frozenset({"jobId", "progress"}),
    workerId=text,
    status=one_of(STATUSES),
    jobId=nullable(text),
    progress=nullable(PROGRESS),
)
CLAIM = shape(workerId=text)
CLIP = shape(
    frozenset({"gate"}),
    seed=integer(0),
    renderSec=number(0),
    attempts=integer(1),
    gate=measurements,
)
COMPLETE = shape(
    workerId=text,
    outputUrl=web_url,
    durationSec=number(0.001),
    frames=integer(1),
    fps=number(1),
    width=integer(1),
    height=integer(1),
    sizeBytes=integer(1),
    watermarked=flag,
    renderSec=number(0),
    clips=list_of(CLIP),
)
FAIL = shape(
    workerId=text,
    error=shape(code=one_of(ERROR_CODES), message=text, retryable=flag),
)


def parse_body(body: bytes) -> dict[str, Any]:
    def refuse(constant: str) -> None:
        raise ValueError(f"{constant} is not JSON")

    try:
        parsed = json.loads(body, parse_constant=refuse)
    except ValueError as error:
        raise Refusal(400, "bad_json", f"body: not JSON ({error})", "body") from None
    if not isinstance(parsed, dict):
        raise Refusal(400, "bad_json", "body: not an object", "body")
    return parsed
