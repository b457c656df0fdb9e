"""Who answers in place of the API is told as what it is, with the address and since when."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from ltx.hosted.edges import describe_redirect
from sandbox.client import free_port
from sandbox.edges import DENIALS, MISSING
from tests.conftest import Box
from tests.operator.test_commands import ask
from tests.test_service import Notified, notified

__all__ = ["notified"]

POLL = "GET /api/videogen/pending"
WRONG = "API_URL is wrong or the app is not deployed"
TOLD = {
    "next: no route": WRONG,
    "next: no method": "status 405",
    "express: no route": WRONG,
    "fastify: no route": WRONG,
    "nest: no route": WRONG,
    "vercel: no route": f"Vercel's edge: NOT_FOUND ({WRONG})",
    "vercel: firewall": "Vercel's firewall: deny",
    "vercel: challenge": "Vercel's firewall: challenge",
    "vercel: protection": "Vercel's deployment protection",
    "vercel: paused": "DEPLOYMENT_PAUSED (the deployment is paused",
    "vercel: no deployment": f"DEPLOYMENT_NOT_FOUND ({WRONG})",
    "cloudflare: rule": "Cloudflare: error code 1020",
    "cloudflare: challenge": "Cloudflare's firewall: challenge",
    "cloudflare: no origin": 'status 522, a web page "Connection timed out", from cloudflare',
    "nothing but 403": "status 403: without a word",
    "rate limit": "status 429: Too many",
    "nginx: bad gateway": 'a web page "502 Bad Gateway", from nginx',
    "portal: 511": "captive portal",
    "portal: redirect": "redirects to http://10.0.0.1/hotspot?to=here",
    "login: redirect": "/login?next=/api/videogen/pending, a login page",
    "vercel: login": "Vercel's deployment protection",
    "slash": "the app must answer without a slash at the end",
    "www": "set API_URL=https://www.example.com",
}


@pytest.mark.parametrize("edge", [*MISSING, *DENIALS])
def test_an_edge_is_told_by_name_and_the_worker_polls_on(box: Box, edge: str) -> None:
    box.hosted.fault(POLL, edge=edge)
    worker = box.start("run")
    faulted = box.hosted.wait("fault")
    box.hosted.wait("pending", after=faulted["seq"])
    assert worker.process.poll() is None
    [told] = re.findall(r"api_unavailable tries=1 (.*)", worker.log)
    assert TOLD[edge] in told


LONG = [
    ({"edge": "next: no route"}, WRONG),
    ({"edge": "www"}, "set API_URL=https://www.example.com"),
    ({"status": 200, "body": "<title>Hotel</title>"}, "a login page or a captive portal"),
    ({"status": 503, "body": {"error": "busy"}}, "status 503"),
]


@pytest.mark.parametrize(("answer", "words"), LONG, ids=[words for _, words in LONG])
def test_a_silent_api_is_told_by_status_systemd_and_heartbeats(
    box: Box, notified: Notified, answer: dict[str, Any], words: str
) -> None:
    box.hosted.fault(POLL, times=-1, **answer)
    box.start("run", NOTIFY_SOCKET=notified.address)
    begin = f"no answer from {box.hosted.url} since 2"

    def tells(event: dict[str, Any]) -> bool:
        return str(event["data"]["progress"]["stage"]).startswith(begin)

    beat = box.hosted.wait("heartbeat", where=tells)
    assert words in beat["data"]["progress"]["stage"]
    assert notified.wait(f"STATUS={begin}")
    silence = json.loads(ask(box, "status", "--json")[1])["silence"]
    assert re.match(rf"{re.escape(begin)}\S+Z: .*{re.escape(words)}", silence)
    assert ask(box, "status")[1].splitlines()[0] == silence
    box.hosted.clear_faults()
    box.hosted.wait(
        "heartbeat",
        after=box.hosted.wait("pending")["seq"],
        where=lambda one: one["data"]["progress"]["stage"] == "idle",
    )
    assert json.loads(ask(box, "status", "--json")[1])["silence"] == ""


def test_an_api_that_is_down_from_the_start_is_told_by_status_and_systemd(
    box: Box, notified: Notified
) -> None:
    down = f"http://127.0.0.1:{free_port()}"
    box.start("run", API_URL=down, NOTIFY_SOCKET=notified.address)
    assert notified.wait(f"STATUS=no answer from {down} since 2")
    assert f"no answer from {down} since 2" in ask(box, "status")[1]


def test_heartbeats_that_are_not_answered_are_told_while_a_job_renders(
    box: Box, notified: Notified
) -> None:
    box.hosted.script_comfyui({"on": "prompt", "kind": "hang"})
    job = box.add_job()
    box.start("run", NOTIFY_SOCKET=notified.address)
    box.hosted.wait("comfyui.step", where=lambda event: event["data"]["step"] == 3)
    box.hosted.fault("POST */heartbeat", times=-1, edge="vercel: firewall")
    told = f"no answer to heartbeats from {box.hosted.url} since"
    assert notified.wait(f"STATUS=job {job}: rendering")
    with notified.news:
        assert notified.news.wait_for(lambda: told in notified.lines[-1], 20)
    assert notified.lines[-1].startswith(f"STATUS=job {job}: rendering")
    assert "Vercel's firewall: deny" in ask(box, "status")[1]


ASKED = "https://example.com/api/videogen/pending"
PATH = "/api/videogen/pending"


@pytest.mark.parametrize(
    ("location", "told"),
    [
        (f"https://www.example.com{PATH}?workerId=a", "set API_URL=https://www.example.com"),
        (f"https://example.com/app{PATH}", "set API_URL=https://example.com/app"),
        (f"//other.example:8443{PATH}", "set API_URL=https://other.example:8443"),
        (f"{PATH}/", "without a slash"),
        ("/signin", "a login page"),
        ("https://team.cloudflareaccess.com/cdn-cgi/access/login/x", "a login page"),
        ("", "to the same address"),
        (f"{PATH}?cookie=set", "to the same address"),
        ("https://www.example.com/", "API_URL is not the API's"),
        ("https://[", "no address"),
    ],
)
def test_a_redirect_names_the_value_to_set(location: str, told: str) -> None:
    assert told in describe_redirect(ASKED, PATH, location)
