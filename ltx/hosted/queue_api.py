"""The hosted queue, one method a call."""

from __future__ import annotations

import re
import socket
import time
from collections.abc import Mapping, Sequence
from typing import Any

from ltx.cancellation import Cancellation
from ltx.errors import ConfigError, Refusal, Unavailable
from ltx.hosted.http import NOT_JSON, HeaderAuth, Http, Reply
from ltx.hosted.retry import parse_retry_after
from ltx.settings import VERSION, Settings
from ltx.text import MAX_OFFER_BYTES, as_dict, one_line, parse_utc

DRAIN_CALL_S = 4.0
OFFER = re.compile(rb'\s*{\s*"job"\s*:\s*{\s*"id"\s*:\s*"([A-Za-z0-9_-]{1,128})"')


class QueueApi:
    """The hosted queue, one method a call.

    A 2xx is taken unless it is a page; 404, 409, 410 and 422 are refusals. Everything else (429,
    5xx, no connection, a page at any status, text where JSON is due) is Unavailable.
    """

    REFUSALS = (404, 409, 410, 422)

    def __init__(self, settings: Settings, cancellation: Cancellation | None) -> None:
        """cancellation: what ends a call; None for the heartbeat, which nothing does."""
        self.settings, self.cancellation = settings, cancellation
        self.http = Http(HeaderAuth("x-videogen-secret", settings.secret))
        self.skew = 0.0
        # Whether a call was taken in this process: then the secret is right, whoever refuses later.
        self.accepted = False

    def lease_seconds(self, answer: Mapping[str, Any]) -> float | None:
        """How long `leaseUntil` still lasts by the API's own clock, on which ours may not agree."""
        end = parse_utc(answer.get("leaseUntil"))
        # The Date header that the skew comes from is cut to whole seconds.
        return None if end is None else end - time.time() - self.skew - 1.0

    def _call(self, method: str, path: str, absent: Sequence[int] = (), **options: Any) -> Any:
        """absent: statuses, even of a page, that mean that this API does not have the call."""
        return self._read(self._ask(method, path, **options), absent)

    def _ask(self, method: str, path: str, **options: Any) -> Reply:
        url = f"{self.settings.api_url}/api/videogen/{path}"
        if self.cancellation is None:
            return self.http.exchange(method, url, **options)
        if self.cancellation.stopping:
            # The last words of a worker, which the stop does not end.
            return self.http.exchange(method, url, seconds=DRAIN_CALL_S, **options)
        return self.http.exchange(method, url, wait=self.cancellation.wait, **options)

    def _read(self, reply: Reply, absent: Sequence[int] = ()) -> Any:
        message = one_line(reply.body.decode(errors="replace"), 200)
        if (ahead := parse_retry_after(reply.headers.get("date"), time.time())) is not None:
            self.skew = ahead
        if 300 <= reply.status < 400:
            target = one_line(reply.headers.get("location"), 100)
            raise Unavailable(f"it redirects to {target}; set API_URL to the final address")
        if not self.accepted and is_about_secret(reply):
            raise ConfigError(
                f"The API at {self.settings.api_url} refused VIDEOGEN_WORKER_SECRET "
                f"({reply.status}): set the same secret here and there."
            )
        if reply.status in absent or (reply.status in self.REFUSALS and not reply.is_opaque):
            raise Refusal(reply.status, message)
        if not reply.ok or reply.is_page:
            raise Unavailable(f"status {reply.status}: {message}", reply.retry_after())
        self.accepted = True
        return reply.json_or(None)

    def register(self, gpu: Mapping[str, object] | None) -> None:
        body = {"hostname": socket.gethostname(), "version": VERSION, "gpu": gpu}
        body = {"workerId": self.settings.worker_id, **body}
        self._call("POST", "register", absent=(404, 405), json=body)

    def pending(self) -> dict[str, Any]:
        """The answer's object: `job` and perhaps `nextPollSec`."""
        # An offer is read even when it is far too large, so that it can be failed.
        options: dict[str, Any] = {"limit": MAX_OFFER_BYTES}
        options["params"] = {"workerId": self.settings.worker_id}
        reply = self._ask("GET", "pending", **options)
        answer = read_excess(reply) or self._read(reply)
        if answer is None and reply.body.strip() in (b"", b"null"):
            return {"job": None}
        if not isinstance(answer, dict) or "job" not in answer:
            raise Unavailable("the answer to `pending` is not {job: …}")
        return answer

    def claim(self, job_id: str) -> dict[str, Any]:
        return as_dict(self._patch(job_id, "claim", {}, absent=(405, 501)))

    def heartbeat(self, body: Mapping[str, object]) -> dict[str, Any]:
        worker = {"workerId": self.settings.worker_id}
        return as_dict(self._call("POST", "heartbeat", json={**worker, **body}))

    def finish(self, job_id: str, verb: str, body: Mapping[str, object]) -> None:
        """Reports an outcome; verb is `complete` or `fail`."""
        self._patch(job_id, verb, body)

    def _patch(
        self, job_id: str, verb: str, body: Mapping[str, object], absent: Sequence[int] = ()
    ) -> Any:
        body = {"workerId": self.settings.worker_id, **body}
        return self._call("PATCH", f"{job_id}/{verb}", absent, json=body)


def is_about_secret(reply: Reply) -> bool:
    """A 401 that no page says, or a 403 in JSON: what an edge refuses comes as text or a page."""
    if reply.status == 401:
        return not reply.is_page
    return reply.status == 403 and reply.json_or(NOT_JSON) is not NOT_JSON


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
