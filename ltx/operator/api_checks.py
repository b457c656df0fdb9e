"""What the doctor asks of the hosted queue, without taking a job or touching one."""

from __future__ import annotations

from collections.abc import Iterator

from ltx.errors import Unavailable
from ltx.hosted.answers import Verdict, judge_probe
from ltx.hosted.edges import WRONG
from ltx.hosted.http import Reply
from ltx.hosted.queue_api import NO_CALL, QueueApi, api_secret, name_absence
from ltx.operator.findings import Answer, DoctorContext
from ltx.operator.status import lock_holders
from ltx.process import read_gpu
from ltx.settings import Settings
from ltx.state import with_worker_id

MAX_SKEW_S = 5.0
# The id of no job, whether ids are text or UUIDs.
NOBODYS = "00000000-0000-0000-0000-000000000000"
# What it means when one is missing; the worker does without register and claim.
NEEDED = {
    "complete": ("FAIL", "no film can be reported"),
    "heartbeat": ("WARN", "nobody sees how the worker is, and it hears of no cancel"),
    "fail": ("WARN", "a job that fails is let go of, and nobody is told"),
}


def check_api(context: DoctorContext) -> Iterator[Answer]:
    """Not `pending`, which may give a job away."""
    settings = with_worker_id(context.settings)
    api, curl = (
        QueueApi(settings, context.cancellation, api_secret(settings)),
        f"curl -i {settings.api_url}",
    )
    try:
        found = find_calls(api, settings)
    except Unavailable as error:
        yield "FAIL", str(error), curl
        return
    has, lacks = ([call for call, there in found.items() if there is it] for it in (True, False))
    if not has:
        yield "FAIL", f"{settings.api_url} has none of our calls; {WRONG}", curl
        return
    for call in lacks:
        if call in NEEDED:
            status, why = NEEDED[call]
            yield status, f"it has no {call}: {why}", curl
    without = f", and is fine without {', '.join(lacks)}" if lacks else ""
    yield "OK", f"{settings.api_url} takes our secret; it has {', '.join(has)}{without}", ""
    if abs(api.skew) > MAX_SKEW_S:
        side = "behind" if api.skew > 0 else "ahead of"
        fix = "sudo timedatectl set-ntp true"
        yield "WARN", f"our clock is {abs(api.skew):.0f} s {side} it", fix


def find_calls(api: QueueApi, settings: Settings) -> dict[str, bool]:
    """By call, whether the API has it. Raises Unavailable, and ConfigError for a wrong secret.

    The heartbeat of a worker that runs here is left to that worker.
    """
    worker = {"workerId": settings.worker_id}
    asked = {"register": api.describe_worker(read_gpu(settings))}
    if not lock_holders(settings.state_dir):
        asked["heartbeat"] = {**worker, "status": "idle", "jobId": None}
    replies = {call: api.ask("POST", call, json=body) for call, body in asked.items()}
    for call in ("claim", "complete", "fail", NO_CALL):
        replies[call] = api.ask("PATCH", f"{NOBODYS}/{call}", json=worker)
    unknown = name_absence(NO_CALL, replies.pop(NO_CALL))
    return {
        call: is_there(api, call, reply)
        and (unknown is None or name_absence(call, reply) != unknown)
        for call, reply in replies.items()
    }


def is_there(api: QueueApi, call: str, reply: Reply) -> bool:
    verdict = judge_probe(reply.status, reply.kind)
    if verdict in (Verdict.SECRET, Verdict.AGAIN):
        raise api.explain(verdict, call, call, reply)
    return verdict is Verdict.DONE
