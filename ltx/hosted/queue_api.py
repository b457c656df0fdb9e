"""The hosted queue, one method a call."""

from __future__ import annotations

import re
import socket
import time
from collections.abc import Mapping
from typing import Any

from ltx.cancellation import Cancellation
from ltx.errors import ApiRefused, ConfigError, NoSuchCall, Refusal, Unavailable
from ltx.hosted.answers import Past, Verdict, judge, name_body
from ltx.hosted.http import HeaderAuth, Http, Reply
from ltx.hosted.retry import parse_retry_after
from ltx.settings import VERSION, Settings
from ltx.text import MAX_OFFER_BYTES, as_dict, one_line, parse_utc

DRAIN_CALL_S = 4.0
OFFER = re.compile(rb'\s*{\s*"job"\s*:\s*{\s*"id"\s*:\s*"([A-Za-z0-9_-]{1,128})"')


class QueueApi:
    """The hosted queue, one method a call; `answers.judge` says what an answer means.

    Raises Refusal for a final no (NoSuchCall when the API lacks the call), ConfigError for a wrong
    secret, and Unavailable for all that may succeed later (ApiRefused when it is refused now).
    """

    def __init__(self, settings: Settings, cancellation: Cancellation | None) -> None:
        """cancellation: what ends a call; None for the heartbeat, which nothing does."""
        self.settings, self.cancellation = settings, cancellation
        self.http = Http(HeaderAuth("x-videogen-secret", settings.secret))
        self.skew = 0.0
        self.past = Past()

    def lease_seconds(self, answer: Mapping[str, Any]) -> float | None:
        """How long `leaseUntil` still lasts by the API's own clock, on which ours may not agree."""
        end = parse_utc(answer.get("leaseUntil"))
        # The Date header that the skew comes from is cut to whole seconds.
        return None if end is None else end - time.time() - self.skew - 1.0

    def _call(self, call: str, method: str, path: str, **options: Any) -> Any:
        return self._read(call, self._ask(method, path, **options))

    def _ask(self, method: str, path: str, **options: Any) -> Reply:
        url = f"{self.settings.api_url}/api/videogen/{path}"
        if self.cancellation and self.cancellation.stopping:
            # The last words of a worker, which the stop does not end.
            options["seconds"] = DRAIN_CALL_S
        elif self.cancellation:
            options["wait"] = self.cancellation.wait
        try:
            return self.http.exchange(method, url, **options)
        except Unavailable:
            self.past = self.past._replace(polled=False)
            raise

    def _read(self, call: str, reply: Reply) -> Any:
        if (ahead := parse_retry_after(reply.headers.get("date"), time.time())) is not None:
            self.skew = ahead
        kind = name_body(reply.body, reply.headers.get("content-type", ""))
        verdict = judge(call, reply.status, kind, self.past)
        if verdict in (Verdict.DONE, Verdict.EMPTY):
            self.past = Past(accepted=True, polled=self.past.polled or call == "pending")
            return {"job": None} if verdict is Verdict.EMPTY else reply.json_or(None)
        if verdict is Verdict.AGAIN:
            self.past = self.past._replace(polled=False)
        raise self._explain(verdict, reply)

    def _explain(self, verdict: Verdict, reply: Reply) -> Exception:
        message = one_line(reply.body.decode(errors="replace"), 200)
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
            return kind(reply.status, message)
        if 300 <= reply.status < 400:
            target = one_line(reply.headers.get("location"), 100)
            return Unavailable(f"it redirects to {target}; set API_URL to the final address")
        return Unavailable(f"status {reply.status}: {message}", reply.retry_after())

    def register(self, gpu: Mapping[str, object] | None) -> None:
        body = {"hostname": socket.gethostname(), "version": VERSION, "gpu": gpu}
        body = {"workerId": self.settings.worker_id, **body}
        self._call("register", "POST", "register", json=body)

    def pending(self) -> dict[str, Any]:
        """The answer's object: `job` and perhaps `nextPollSec`."""
        # An offer is read even when it is far too large, so that it can be failed.
        options: dict[str, Any] = {"limit": MAX_OFFER_BYTES}
        options["params"] = {"workerId": self.settings.worker_id}
        reply = self._ask("GET", "pending", **options)
        answer = read_excess(reply) or self._read("pending", reply)
        if not isinstance(answer, dict) or "job" not in answer:
            raise Unavailable("the answer to `pending` is not {job: …}")
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


def read_excess(reply: Reply) -> dict[str, Any]:
    """An offer that is too much to be read, cut down to what it takes to fail its job.

    Empty for every other answer.
    """
    offer = OFFER.match(reply.body) if reply.ok and not reply.is_page else None
    if offer:
        try:
            reply.parse()
        except RecursionError:
            return {"job": {"id": offer[1].decode(), "stageData": "far too much"}}
        except ValueError:
            pass  # cut short, which is no answer, and asked for again
    return {}
