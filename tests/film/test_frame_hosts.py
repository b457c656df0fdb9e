"""Frames come from anywhere but from inside this network, and a host's fault is called that."""

from __future__ import annotations

import base64
import io
import re
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from ltx.errors import Unavailable
from ltx.hosted.frames import is_public
from ltx.hosted.http import Http
from tests.conftest import SIZE, Box
from tests.film.films import film_of, shown
from tests.film.frames import GOOD, MIB, FloodServer, chain, fail, gets, good_frame, port_of
from tests.pictures import image_of, likeness, save

# What hosts do


@pytest.mark.parametrize("status", [404, 403])
def test_a_frame_that_is_gone_or_forbidden_is_not_asked_for_again(
    service: Box, status: int
) -> None:
    name = f"gone-{status}.png"
    url = service.hosted.put_frame(name, GOOD)
    service.hosted.fault(f"GET /frames/{name}", times=-1, status=status)
    code, message = fail(service, url, url)
    assert code == "frame_unavailable"
    assert "stageData.frames[0]" in message
    assert str(status) in message
    assert gets(service, name) == 1


@pytest.mark.parametrize(
    ("name", "action"),
    {
        "down.png": {"status": 503},
        "reset.png": {"reset": True},
        "stops-in-the-middle.png": {"truncate": 5000},
    }.items(),
)
def test_a_host_that_fails_three_times_makes_the_frame_unavailable(
    service: Box, name: str, action: dict[str, Any]
) -> None:
    url = service.hosted.put_frame(name, GOOD)
    service.hosted.fault(f"GET /frames/{name}", times=-1, **action)
    code, message = fail(service, good_frame(service), url)
    assert code == "frame_unavailable"
    assert "stageData.frames[1]" in message
    assert gets(service, name) == 3


@pytest.mark.parametrize(
    "action",
    [{"drip": {"bytes": 1, "every": 0.02}}, {"blackhole": True}, {"delay": 30}],
    ids=["drips", "is silent", "answers late"],
)
def test_the_time_for_a_download_is_limited_as_a_whole_when_the_host(
    service: Box, action: dict[str, Any]
) -> None:
    name = f"slow-{next(iter(action))}.png"
    url = service.hosted.put_frame(name, GOOD)
    service.hosted.fault(f"GET /frames/{name}", **action)
    with pytest.raises(Unavailable):
        Http(proxies=False).exchange("GET", url, seconds=0.3, sink=io.BytesIO())
    assert Http(proxies=False).exchange("GET", url).body == GOOD


def test_a_frame_above_64_mb_is_invalid_and_never_in_memory_as_a_whole(service: Box) -> None:
    url = service.hosted.put_frame("endless.png", GOOD)
    service.hosted.fault("GET /frames/endless.png", times=-1, endless=True)
    process = Path(f"/proc/{service.running[-1].process.pid}")
    service.hosted.wait("pending")
    before = peak_memory(process)
    code, message = fail(service, url, url)
    assert code == "frame_invalid"
    assert "stageData.frames[0]" in message
    assert "above 64 MB" in message
    assert gets(service, "endless.png") == 1
    assert peak_memory(process) - before < 32 * MIB


def test_the_limit_of_a_frame_is_64_mb_and_not_more(service: Box, flood: FloodServer) -> None:
    big = f"http://127.0.0.1:{flood.port}/big.png"
    code, message = fail(service, big, good_frame(service))
    assert code == "frame_invalid"
    assert "above 64 MB" in message


def peak_memory(process: Path) -> int:
    """The most memory a process has had so far, in bytes."""
    found = re.search(r"VmHWM:\s+(\d+) kB", (process / "status").read_text())
    assert found
    return int(found[1]) * 1024


def test_a_redirect_may_not_bring_more_than_64_mb_either(service: Box, flood: FloodServer) -> None:
    flood.done.clear()
    code, _ = fail(service, f"http://127.0.0.1:{flood.port}/flood.png", good_frame(service))
    assert code in ("frame_invalid", "frame_unavailable")
    assert flood.done.wait(30)
    assert flood.sent["/flood.png"] < 72 * MIB, (
        "the body of a redirect was swallowed without a limit"
    )


# Where frames may come from


@pytest.mark.parametrize(
    "host",
    [
        "localhost",
        "2130706433",
        "0x7f000001",
        "127.1",
        "0.0.0.0",
        "[::ffff:127.0.0.1]",
        "[::1]",
        "169.254.169.254",
    ],
)
def test_a_private_address_that_frame_hosts_does_not_name_is_refused(
    service: Box, host: str
) -> None:
    before = len(service.hosted.requests("* /frames/*"))
    good = good_frame(service)
    url = f"http://{host}:{port_of(service)}/frames/good.png"
    code, message = fail(service, url, good)
    assert code == "frame_unavailable"
    assert "private address" in message
    assert "FRAME_HOSTS" in message
    assert len(service.hosted.requests("* /frames/*")) == before


def test_a_port_that_frame_hosts_does_not_name_is_refused(service: Box) -> None:
    url = f"http://127.0.0.1:{service.port}/frames/good.png"
    code, message = fail(service, url, good_frame(service))
    assert code == "frame_unavailable"
    assert "private address" in message


@pytest.mark.parametrize("host", ["localhost", "[::ffff:127.0.0.1]"])
def test_an_allowed_host_cannot_redirect_to_a_private_address(service: Box, host: str) -> None:
    name = f"to-{re.sub('[^a-z0-9]', '-', host)}.png"
    target = f"http://{host}:{port_of(service)}/frames/good.png"
    url = service.hosted.put_frame(name, GOOD)
    service.hosted.fault(f"GET /frames/{name}", times=-1, redirect=target)
    before = gets(service, "good.png")
    code, message = fail(service, url, good_frame(service))
    assert code == "frame_unavailable"
    assert "private address" in message
    assert gets(service, name) == 1
    assert gets(service, "good.png") == before


def test_a_redirect_to_a_file_of_this_machine_is_not_followed(service: Box) -> None:
    url = service.hosted.put_frame("to-file.png", GOOD)
    target = service.watermark.as_uri()
    service.hosted.fault("GET /frames/to-file.png", times=-1, redirect=target)
    code, message = fail(service, url, good_frame(service))
    assert code == "frame_unavailable"
    assert "stageData.frames[0]" in message


def test_a_fourth_redirect_is_not_followed(service: Box) -> None:
    chain(service, "long", hops=4)
    code, _ = fail(service, f"{service.hosted.url}/frames/long-0.png", good_frame(service))
    assert code == "frame_unavailable"
    assert gets(service, "long-3.png") > 0
    assert gets(service, "long-4.png") == 0


@pytest.mark.parametrize("who", ["user:password@", "@"])
def test_an_address_with_credentials_is_refused_before_any_download(service: Box, who: str) -> None:
    good = good_frame(service)
    before = len(service.hosted.requests("* /frames/*"))
    code, message = fail(service, good, good.replace("http://", f"http://{who}"))
    assert code == "bad_job"
    assert "without credentials" in message
    assert len(service.hosted.requests("* /frames/*")) == before


@pytest.mark.parametrize("host", ["a..b", "a" * 64 + ".example", "[::zz]"])
def test_a_host_that_cannot_exist_is_the_jobs_fault_and_nothing_unexpected(
    service: Box, host: str
) -> None:
    code, message = fail(service, f"http://{host}/frame.png", good_frame(service))
    assert code in ("frame_unavailable", "bad_job"), message


@pytest.mark.parametrize(
    "address",
    """
    127.0.0.1 127.255.255.254 0.0.0.0 10.1.2.3 172.16.0.1 172.31.255.255 192.168.1.1 100.64.0.1
    169.254.169.254 192.0.2.1 198.18.0.1 224.0.0.1 239.1.1.1 240.0.0.1 255.255.255.255
    ::1 :: ::ffff:127.0.0.1 ::ffff:10.0.0.1 ::ffff:169.254.169.254 fc00::1 fd12:3456::1 fe80::1
    fe80::1%eth0 ff02::1 2001:db8::1
    """.split(),  # noqa: SIM905 (a table is easier to read)
)
def test_addresses_of_this_home_are_not_public(address: str) -> None:
    assert not is_public(address)


@pytest.mark.parametrize("address", ["1.1.1.1", "172.32.0.1", "::ffff:8.8.8.8", "2606:4700::1"])
def test_addresses_of_the_open_internet_are_public(address: str) -> None:
    assert is_public(address)


def test_hosts_that_stumble_or_redirect_three_times_are_served_without_our_secrets(
    box: Box,
) -> None:
    home = box.folder / "home"
    home.mkdir()
    (home / ".netrc").write_text("default login someone password netrc-password\n")
    (home / ".netrc").chmod(0o600)
    box.settings["HOME"] = str(home)
    wide, dot = image_of("wide", (4000, 8)), Image.new("RGB", (1, 1), (200, 90, 30))
    first = box.hosted.put_frame("stumbles.png", save(wide))
    match = "GET /frames/stumbles.png"
    box.hosted.fault(match, status=503, headers={"Set-Cookie": "a=b", "Retry-After": "1"})
    box.hosted.fault(match, truncate=100)
    last = chain(box, "hop", hops=3, content=save(dot))
    frames = film_of(box, [first, last], SIZE)
    assert likeness(frames[0], shown(wide, SIZE)) < 8
    assert likeness(frames[-1], shown(dot, SIZE)) < 8

    requests = box.hosted.requests("* /frames/*")
    assert gets(box, "stumbles.png") == 3
    assert len(requests) == 3 + 4
    secrets = [box.hosted.secret, box.hosted.blob_token, "netrc-password", "test-worker"]
    secrets += [base64.b64encode(f"someone:{secrets[2]}".encode()).decode()]
    for request in requests:
        told = repr(request)
        assert not [secret for secret in secrets if secret in told]
        assert set(request["headers"]) <= {
            *("host", "user-agent", "accept", "accept-encoding", "connection"),
            "cookie",  # the host's own, from its first answer
        }
        assert not request["query"]
