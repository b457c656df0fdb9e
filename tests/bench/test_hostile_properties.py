"""What must hold for any text, address, name or answer from outside, tried with generated ones."""

from __future__ import annotations

import contextlib
import ipaddress
import json
import os
import re
import socket
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ltx.cancellation import Cancellation
from ltx.comfyui.answers import find_video, read_history, read_rejection
from ltx.comfyui.client import Comfy, ComfyLost
from ltx.comfyui.workflow import ClipSpec, build_workflow
from ltx.errors import FAULTS, JobError
from ltx.hosted.blob import read_blob_error
from ltx.hosted.frames import Refused, connect_allowed, is_at_home, is_public, shares_home
from ltx.hosted.http import Reply
from ltx.hosted.queue_api import QueueApi, api_secret, read_excess
from ltx.hosted.retry import parse_retry_after
from ltx.job import JOB_ID, Plan, parse_stage_data
from ltx.settings import Settings, Size, is_plain_url
from ltx.text import JSON_DEPTH, Redactor, one_line, parse_utc, prune

FRUGAL = settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
URL = "https://pictures.example/a.png"
SECRET = "a-secret-that-is-known"

scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text()
anything = st.recursive(
    scalars, lambda one: st.lists(one) | st.dictionaries(st.text(), one), max_leaves=12
)


def around(known: dict[str, Any]) -> st.SearchStrategy[dict[str, Any]]:
    """Objects with the right names, each with its right value or with anything."""
    fields = {name: st.just(value) | anything for name, value in known.items()}
    return st.fixed_dictionaries({}, optional=fields)


NEW = around({"frames": [URL, URL], "clipPrompts": ["walk"], "watermark": True})
OLD = around({"imageUrl": URL, "endImageUrl": URL, "klingPrompt": "walk", "watermark": False})


@FRUGAL
@given(anything | NEW | OLD)
def test_stage_data_is_a_sound_plan_or_a_bad_job(data: Any) -> None:
    try:
        plan = parse_stage_data(prune(data))
    except JobError as error:
        check_report(error, "bad_job")
        return
    assert isinstance(plan, Plan)
    assert 2 <= len(plan.frames) <= 6
    assert len(plan.prompts) == len(plan.frames) - 1
    assert all(map(is_plain_url, plan.frames))
    assert all(len(prompt.encode()) <= 32_000 for prompt in plan.prompts)
    assert isinstance(plan.watermark, bool)


def check_report(error: JobError, *codes: str) -> None:
    report = error.report()
    assert report["code"] in (codes or FAULTS)
    message = report["message"]
    assert isinstance(message, str)
    assert message.isprintable()
    assert len(message) <= 1001


@FRUGAL
@given(st.text(), st.text(max_size=20))
def test_a_text_goes_into_the_workflow_as_it_is_and_nowhere_else(
    prompt: str, negative: str
) -> None:
    spec = ClipSpec(0, "a.png", "b.png", prompt, 1, "prefix", Size(64, 64), negative)
    graph = build_workflow(spec, Settings.load({}, needed=()))
    plain = build_workflow(
        ClipSpec(0, "a.png", "b.png", "", 1, "prefix", Size(64, 64), ""), SETTINGS
    )
    texts = {n: node for n, node in graph.items() if node["class_type"] == "CLIPTextEncode"}
    assert sorted(node["inputs"]["text"] for node in texts.values()) == sorted([prompt, negative])
    assert {n: node for n, node in graph.items() if n not in texts} == {
        n: node for n, node in plain.items() if n not in texts
    }


SETTINGS = Settings.load({}, needed=())
KINDS = ("empty", "null", "page", "json", "no_route", "text", "edge")

# Addresses

hosts = st.sampled_from(["127.0.0.1", "localhost", "[::1]", "a.example", "2130706433", "[", ""])
pieces = st.sampled_from(
    ["http:", "https:", "//", "/", "@", ":", "#", "?", "\\", "%", "a:b@", "80"]
)
addresses = st.text() | st.lists(hosts | pieces | st.text(max_size=3), max_size=8).map("".join)


@FRUGAL
@given(addresses)
def test_a_plain_address_has_http_a_host_and_no_credentials(url: str) -> None:
    if is_plain_url(url):
        parts = urlsplit(url)
        assert parts.scheme in ("http", "https")
        assert parts.hostname
        assert parts.username is None
        assert parts.password is None


@FRUGAL
@given(st.ip_addresses(v=4) | st.ip_addresses(v=6))
def test_a_public_address_is_public_by_every_account(ip: Any) -> None:
    if is_public(str(ip)):
        wrapped = getattr(ip, "ipv4_mapped", None) or ip
        if ip in ipaddress.ip_network("64:ff9b::/96"):
            wrapped = ipaddress.IPv4Address(ip.packed[-4:])
        assert wrapped.is_global
        assert not (wrapped.is_private)
        assert not (wrapped.is_loopback)
        assert not (wrapped.is_link_local)
        assert not (wrapped.is_multicast)
        assert not (wrapped.is_unspecified)
        assert not (wrapped.is_reserved)
        assert wrapped.version == 4 or wrapped in ipaddress.ip_network("2000::/3")


@FRUGAL
@given(st.ip_addresses(v=4, network="10.0.0.0/8") | st.ip_addresses(v=4, network="127.0.0.0/8"))
def test_a_private_address_is_private_in_every_wrapping(ip: ipaddress.IPv4Address) -> None:
    packed = int(ip)
    six = [f"::ffff:{ip}", f"::{ip}", f"64:ff9b::{ip}", f"::ffff:0:{ip}"]
    six += [f"2002:{packed >> 16:x}:{packed & 0xFFFF:x}::1", f"64:ff9b:1::{ip}"]
    assert not any(map(is_public, six))
    for host in (str(packed), hex(packed), f"0{packed:o}", str(ip)):
        with pytest.raises(Refused):
            connect_allowed(host, 9, 0.1, frozenset())


@FRUGAL
@given(st.ip_addresses(v=6, network="2600::/16"), st.integers(0, 2**72 - 1))
def test_every_address_of_our_own_ipv6_network_is_at_home(ip: Any, rest: int) -> None:
    neighbour = ipaddress.ip_address(int(ip) >> 72 << 72 | rest)
    assert shares_home(str(neighbour), str(ip))
    assert not shares_home(str(ipaddress.ip_address(int(ip) ^ 1 << 72)), str(ip))


def test_an_address_of_this_machine_is_at_home() -> None:
    assert is_at_home("127.0.0.1")


@FRUGAL
@given(st.text(max_size=300))
def test_a_host_that_nobody_can_look_up_is_refused_or_unknown(name: str) -> None:
    # A dot-less label in brackets is never sent to a name server.
    with pytest.raises((Refused, OSError)):
        connect_allowed(f"[{name}]", 9, 0.1, frozenset())


def test_the_connection_goes_to_the_address_that_was_checked() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        allowed = frozenset({f"localhost:{port}"})
        with connect_allowed("localhost", port, 1.0, allowed) as line:
            assert line.getpeername() == ("127.0.0.1", port)
        with pytest.raises(Refused):
            connect_allowed("127.0.0.1", port, 1.0, allowed)


# File names

names = st.sampled_from(["..", "/", ".", "output", "etc", "a.mp4", "\0", "~", "x" * 300, "\ud800"])
paths = st.text(max_size=30) | st.lists(names | st.text(max_size=3), max_size=6).map("/".join)


@FRUGAL
@given(paths, paths)
def test_a_clip_is_taken_from_comfyuis_output_folder_only(
    tmp_path: Path, subfolder: str, filename: str
) -> None:
    home, target = tmp_path / "home", tmp_path / "target.mp4"
    (home / "output").mkdir(parents=True, exist_ok=True)
    for path in (tmp_path / "a.mp4", home / "a.mp4", home / "output" / "a.mp4"):
        path.write_text(str(path))
    for name, aim in (("link.mp4", tmp_path / "a.mp4"), ("loop.mp4", home / "output" / "loop.mp4")):
        with contextlib.suppress(FileExistsError):
            (home / "output" / name).symlink_to(aim)
    comfy = Comfy("http://127.0.0.1:9", Cancellation(), home=home)
    outputs = {"1": {"gifs": [{"filename": filename, "subfolder": subfolder, "type": "output"}]}}
    try:
        comfy.fetch(find_video(outputs), target)
    except (ComfyLost, JobError):
        assert not target.exists()
    else:
        assert target.read_text() == str(home / "output" / "a.mp4")
        target.unlink()


@pytest.mark.parametrize(
    "name", ["link.mp4", "loop.mp4", "dir.mp4", "x" * 250 + ".mp4", "pipe.mp4"]
)
def test_a_clip_that_is_no_file_of_comfyuis_is_not_taken(tmp_path: Path, name: str) -> None:
    output = tmp_path / "home" / "output"
    (output / "dir.mp4").mkdir(parents=True)
    os.mkfifo(output / "pipe.mp4")
    (tmp_path / "private").write_text("private")
    (output / "link.mp4").symlink_to(tmp_path / "private")
    (output / "loop.mp4").symlink_to(output / "loop.mp4")
    comfy = Comfy("http://127.0.0.1:9", Cancellation(), home=tmp_path / "home")
    with pytest.raises(ComfyLost):
        comfy.fetch(find_video({"1": {"gifs": [{"filename": name}]}}), tmp_path / "target.mp4")
    assert (tmp_path / "private").read_text() == "private"


@FRUGAL
@given(st.text())
def test_a_job_id_is_a_plain_name(job_id: str) -> None:
    if JOB_ID.fullmatch(job_id):
        assert re.fullmatch("[A-Za-z0-9_-]+", job_id)
        assert (Path("/spool") / job_id).resolve().parent == Path("/spool")


# Answers

ERRORS = around(
    {
        "error": {"type": "missing_node_type", "extra_info": {"class_type": "X"}},
        "node_errors": {"1": {"errors": [{"type": "value_not_in_list", "extra_info": {}}]}},
    }
)
RECORDS = around({"status": {"status_str": "error", "messages": [["x", {}]]}, "outputs": {}})
OUTPUTS = st.dictionaries(st.text(), around({"gifs": [{"filename": "a.mp4"}]}) | anything)


@FRUGAL
@given(anything | ERRORS)
def test_any_refusal_of_comfyuis_is_one_of_our_errors(body: Any) -> None:
    check_report(read_rejection(body))


@FRUGAL
@given(RECORDS, OUTPUTS)
def test_any_record_of_comfyuis_is_a_success_or_one_of_our_errors(
    record: Any, outputs: Any
) -> None:
    for read, given_value in ((read_history, record), (find_video, outputs)):
        try:
            read(given_value)
        except JobError as error:
            check_report(error)


@FRUGAL
@given(st.binary() | anything.map(lambda value: json.dumps(value).encode()), st.text())
def test_any_bytes_are_an_answer_or_none(body: bytes, kind: str) -> None:
    reply = Reply(200, {"content-type": kind}, body)
    assert reply.kind in KINDS
    reply.json_or(None)
    assert str(read_blob_error(reply)).isprintable()


@pytest.mark.parametrize("depth", [40, 400, 900, 100_000])
@pytest.mark.parametrize("opener", [b"[", b'{"a":'])
def test_no_answer_is_deeper_than_what_recursion_can_take(depth: int, opener: bytes) -> None:
    closer = b"]" if opener == b"[" else b"}"
    inner = opener * depth + b"1" + closer * depth
    reply = Reply(200, {}, b'{"job": {"id": "a", "stageData": ' + inner + b"}}")
    answer: Any = read_excess(reply) or reply.json_or({})
    assert answer["job"]["id"] == "a"
    assert depth_of(answer) <= JSON_DEPTH + 1
    with pytest.raises(JobError, match="bad_job"):
        parse_stage_data(answer["job"]["stageData"])


def depth_of(value: Any) -> int:
    children = value.values() if isinstance(value, dict) else value
    return 1 + max(map(depth_of, children), default=0) if isinstance(value, (dict, list)) else 0


@FRUGAL
@given(anything)
def test_any_lease_is_a_number_of_seconds_or_none(answer: Any) -> None:
    api = QueueApi(SETTINGS, None, api_secret(SETTINGS))
    assert isinstance(api.lease_seconds({"leaseUntil": answer}), float | None)


TIMES = st.text() | st.from_regex(r"\A[0-9TZ:+.-]{1,30}\Z") | st.datetimes().map(str)
DATES = st.from_regex(r"\A(Mon, )?[0-9]{1,4} (Jan|Foo) [0-9]{1,9} [0-9:]{1,9} ?[A-Z0-9+-]{0,6}\Z")


@FRUGAL
@given(TIMES | anything, TIMES | DATES)
def test_any_time_is_a_number_or_none(moment: Any, pause: str) -> None:
    assert isinstance(parse_utc(moment), float | None)
    assert isinstance(parse_retry_after(pause, 0.0), float | None)


@FRUGAL
@given(st.text(), st.text(), st.integers(0, 400))
def test_any_text_becomes_one_short_line_without_secrets(
    before: str, after: str, limit: int
) -> None:
    line = one_line(f"{before}\n\x1b[2J\u202e\u2028{after}", limit)
    assert line.isprintable()
    assert len(line) <= limit + 1
    redact = Redactor()
    redact.hide([SECRET])
    assert SECRET not in redact(f"{before}{SECRET}{after}")
    assert "p@ss" not in redact(f"{before} http://me:p@ss@host/")
