"""The hosted queue, one method a call."""

from __future__ import annotations

import re
import socket
import time
from collections.abc import Mapping
from typing import Any

from ltx.cancellation import Cancellation
from ltx.errors import ApiRefused, ConfigError, NoSuchCall, Refusal, Unavailable
from ltx.hosted.answers import Past, Verdict, is_about_secret, judge
from ltx.hosted.edges import describe_answer, describe_redirect
from ltx.hosted.env_secret import EnvSecret
from ltx.hosted.http import Http, Reply
from ltx.hosted.retry import parse_retry_after
from ltx.settings import VERSION, Settings
from ltx.text import MAX_OFFER_BYTES, as_dict, one_line, parse_utc

DRAIN_CALL_S = 4.0
# What a gateway (520 and 524: Cloudflare's) gave up waiting for may still have been done behind it.
GAVE_UP = (502, 504, 520, 524)
# A call that nobody has: its answer shows how this API speaks of what is not there.
NO_CALL = "no-such-call"
OFFER = re.compile(rb'\s*{\s*"job"\s*:\s*{\s*"id"\s*:\s*"([A-Za-z0-9_-]{1,128})"')


def api_secret(settings: Settings) -> EnvSecret:
    return EnvSecret("VIDEOGEN_WORKER_SECRET", settings.secret, "x-videogen-secret")


class QueueApi:
    """The hosted queue, one method a call; `answers.judge` says what an answer means.

    Raises Refusal for a final no (NoSuchCall when the API lacks the call), ConfigError for a wrong
    secret, and Unavailable for all that may succeed later (ApiRefused when it is refused now).
    """

    def __init__(
        self, settings: Settings, cancellation: Cancellation | None, secret: EnvSecret
    ) -> None:
        """cancellation: what ends a call; None for the heartbeat, which nothing does."""
        self.settings, self.cancellation, self.secret = settings, cancellation, secret
        self.http = Http(secret)
        self.skew = 0.0
        # Whether `pending` was answered, and nothing has failed since.
        self.polled = False

    def lease_seconds(self, answer: Mapping[str, Any]) -> float | None:
        """How long `leaseUntil` still lasts by the API's own clock, on which ours may not agree."""
        end = parse_utc(answer.get("leaseUntil"))
        # The Date header that the skew comes from is cut to whole seconds.
        return None if end is None else end - time.time() - self.skew - 1.0

    def _call(self, call: str, method: str, path: str, **options: Any) -> Any:
        return self._read(call, path, self.ask(method, path, **options))

    def ask(self, method: str, path: str, **options: Any) -> Reply:
        """One answer; when it refuses the secret and `.env` has another, the answer to that."""
        sent = self.secret.secret
        reply = self._exchange(method, path, **options)
        if is_about_secret(reply.status, reply.kind) and self.secret.renew(sent):
            reply = self._exchange(method, path, **options)
        return reply

    def _exchange(self, method: str, path: str, **options: Any) -> Reply:
        url = f"{self.settings.api_url}/api/videogen/{path}"
        if self.cancellation and self.cancellation.stopping:
            # The last words of a worker, which the stop does not end.
            options["seconds"] = DRAIN_CALL_S
        elif self.cancellation:
            options["wait"] = self.cancellation.wait
        try:
            reply = self.http.exchange(method, url, **options)
        except Unavailable:
            self.polled = False
            raise
        if (ahead := parse_retry_after(reply.headers.get("date"), time.time())) is not None:
            self.skew = ahead
        return reply

    def _read(self, call: str, path: str, reply: Reply) -> Any:
        kind = self._name_body(call, path, reply)
        verdict = judge(call, reply.status, kind, Past(self.secret.accepted, self.polled))
        if verdict in (Verdict.DONE, Verdict.EMPTY):
            # A captive portal takes every secret.
            self.secret.accepted |= reply.kind != "page"
            self.polled |= call == "pending"
            return {"job": None} if verdict is Verdict.EMPTY else reply.json_or(None)
        if verdict is Verdict.AGAIN:
            self.polled = False
        raise self.explain(verdict, call, path, reply)

    def _name_body(self, call: str, path: str, reply: Reply) -> str:
        """The kind of body; JSON that this API has for every call it lacks is no word on a job."""
        if call not in ("claim", "fail") or reply.status != 404 or reply.kind != "json":
            return reply.kind
        job_id = path.partition("/")[0]
        unknown = self._exchange("PATCH", f"{job_id}/{NO_CALL}", json={})
        is_missing = name_absence(call, reply) == name_absence(NO_CALL, unknown)
        return "no_route" if is_missing else "json"

    def explain(self, verdict: Verdict, call: str, path: str, reply: Reply) -> Exception:
        """What to raise for an answer that is no success."""
        refused = (
            f"The API at {self.settings.api_url} refused VIDEOGEN_WORKER_SECRET "
            f"({reply.status}): set the same secret here and there."
        )
        if verdict is Verdict.SECRET:
            return ConfigError(refused)
        if verdict is Verdict.REFUSED:
            return ApiRefused(refused, reply.retry_after())
        if verdict in (Verdict.ABSENT, Verdict.FINAL):
            kind = NoSuchCall if verdict is Verdict.ABSENT else Refusal
            return kind(reply.status, one_line(reply.body.decode(errors="replace"), 200))
        if 300 <= reply.status < 400:
            path = f"/api/videogen/{path}"
            asked = f"{self.settings.api_url}{path}"
            return Unavailable(describe_redirect(asked, path, reply.headers.get("location", "")))
        told = describe_answer(reply.status, reply.headers, reply.body, reply.kind, call)
        return Unavailable(told, reply.retry_after(), lost=reply.status in GAVE_UP)

    def describe_worker(self, gpu: Mapping[str, object] | None) -> dict[str, object]:
        """The body of `register`."""
        host = {"hostname": socket.gethostname(), "version": VERSION}
        return {"workerId": self.settings.worker_id, **host, "gpu": gpu}

    def register(self, gpu: Mapping[str, object] | None) -> None:
        self._call("register", "POST", "register", json=self.describe_worker(gpu))

    def pending(self) -> dict[str, Any]:
        """The answer's object: `job` and perhaps `nextPollSec`."""
        # An offer is read even when it is far too large, so that it can be failed.
        options: dict[str, Any] = {"limit": MAX_OFFER_BYTES}
        options["params"] = {"workerId": self.settings.worker_id}
        reply = self.ask("GET", "pending", **options)
        answer = read_excess(reply) or self._read("pending", "pending", reply)
        if not isinstance(answer, dict) or "job" not in answer:
            self.polled = False
            raise Unavailable("the answer to `pending` is not {job: …}; API_URL is not the API's")
        return answer

    def claim(self, job_id: str) -> dict[str, Any]:
        return as_dict(self._patch(job_id, "claim", {}))

    def heartbeat(self, body: Mapping[str, object]) -> dict[str, Any]:
        worker = {"workerId": self.settings.worker_id}
        return as_dict(self._call("heartbeat", "POST", "heartbeat", json={**worker, **body}))

    def finish(self, job_id: str, verb: str, body: Mapping[str, object]) -> None:
        """Reports an outcome; verb is `complete` or `fail`."""
        self._patch(job_id, verb, body)

    def _patch(self, job_id: str, verb: str, body: Mapping[str, object]) -> Any:
        body = {"workerId": self.settings.worker_id, **body}
        return self._call(verb, "PATCH", f"{job_id}/{verb}", json=body)


def name_absence(call: str, reply: Reply) -> bytes | None:
    """What a 404 says beside the name of its call; None for any other answer."""
    return reply.body.replace(call.encode(), b"") if reply.status == 404 else None


def read_excess(reply: Reply) -> dict[str, Any]:
    """An offer that is too much to be read, cut down to what it takes to fail its job.

    Empty for every other answer.
    """
    offer = OFFER.match(reply.body) if reply.ok and reply.kind != "page" else None
    if offer:
        try:
            reply.parse()
        except RecursionError:
            return {"job": {"id": offer[1].decode(), "stageData": "far too much"}}
        except ValueError:
            pass  # cut short, which is no answer, and asked for again
    return {}
