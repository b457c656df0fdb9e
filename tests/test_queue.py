"""The queue: register, poll, claim, the answers of an API in trouble, outcomes that get there."""

from __future__ import annotations

import base64
import contextlib
import json
import re
import socket
import time
from collections.abc import Iterator
from email.utils import formatdate
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from ltx.errors import JobError
from ltx.hosted.retry import backoff, parse_retry_after
from ltx.job import parse_stage_data
from sandbox.client import Hosted, NothingHappened
from sandbox.launch import Running
from tests.conftest import Box, a_stage, made_once
from tests.pictures import picture
from tests.programs import stand_in

URL = "https://pictures.example/a.png"
NONSENSE = {"frames": "none"}
PAGE = "<!doctype html><h1>Checkpoint</h1>"
POLL = "GET /api/videogen/pending"
REGISTER = "POST /api/videogen/register"


class Service:
    """One worker that goes on serving while a table of cases is put to it."""

    def __init__(self, box: Box, worker: Running) -> None:
        self.box, self.hosted, self.worker = box, box.hosted, worker

    def refuse(self, stage: Any) -> dict[str, Any]:
        """The error that a job with this stage data is failed with."""
        job = self.hosted.add_stage(stage)
        self.hosted.wait("fail", job)
        return self.box.failure(job)

    def calls(self, match: str, after: int) -> list[dict[str, Any]]:
        """Requests that began after an event."""
        events = self.hosted.events("request.start", after=after)
        numbers = [event["data"]["request"] for event in events]
        return [call for call in self.hosted.requests(match) if call["seq"] in numbers]


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with a_stage(tmp_path_factory.mktemp("service")) as box:
        worker = box.start(POLL_INTERVAL_S="0.1", HEARTBEAT_INTERVAL_S="5")
        box.hosted.wait("pending")
        yield Service(box, worker)
        assert worker.process.poll() is None, worker.log


class Delivered(NamedTuple):
    """What the hosted side saw while one worker did a job of each shape of stage data."""

    new: str
    old: str
    outcomes: list[dict[str, Any]]
    requests: list[dict[str, Any]]
    events: list[dict[str, Any]]
    secret: str
    token: str

    def seen(self, kind: str) -> list[dict[str, Any]]:
        return [event for event in self.events if event["kind"] == kind]


@pytest.fixture(scope="module")
def delivered(shared_folder: Path) -> Delivered:
    folder = made_once(shared_folder / "delivered", deliver_both_shapes)
    return Delivered(**json.loads((folder / "record.json").read_text()))


def deliver_both_shapes(folder: Path) -> None:
    with a_stage(folder) as box:
        hosted, new = box.hosted, box.add_job()
        frames = [hosted.put_frame(f"old-{n}.png", picture((320, 180), n)) for n in range(2)]
        names = ("imageUrl", "endImageUrl", "klingPrompt")
        old = hosted.add_stage(dict(zip(names, [*frames, "an older walk"], strict=True)))
        # An interval that would outlast the test, were the next poll not made at once.
        box.start(POLL_INTERVAL_S="600", LTX_TEXT="job")
        done = hosted.wait("complete", old, timeout=60)
        hosted.wait("pending", after=done["seq"])
        outcomes = [hosted.job(job)["outcome"] for job in (new, old)]
        secrets = (hosted.secret, hosted.blob_token)
        record = Delivered(new, old, outcomes, hosted.requests(), hosted.events(), *secrets)
        (folder / "record.json").write_text(json.dumps(record._asdict()))


def gaps(calls: list[dict[str, Any]]) -> list[float]:
    return [after["t"] - before["t"] for before, after in pairwise(calls)]


# Register


@pytest.mark.parametrize(
    ("answer", "gpu"),
    [
        ("echo 'NVIDIA GeForce RTX 5090, 32607'", ("NVIDIA GeForce RTX 5090", 32607 * 2**20)),
        ("echo 'No devices were found'; exit 6", None),
    ],
)
def test_registration_tells_worker_host_version_and_gpu(
    box: Box, answer: str, gpu: tuple[str, int] | None
) -> None:
    box.start(PATH=stand_in(box.folder, "nvidia-smi", answer))
    told = box.hosted.wait("register")["data"]
    assert told.pop("version")
    assert told == {
        "workerId": "test-worker",
        "hostname": socket.gethostname(),
        "gpu": gpu and {"name": gpu[0], "vramBytes": gpu[1]},
    }


@pytest.mark.parametrize(
    "answer",
    [
        {"status": 404, "body": {"error": "no such call"}},
        {"status": 404, "body": PAGE},
        {"status": 405, "body": ""},
    ],
)
def test_an_api_without_register_is_said_once_and_served(box: Box, answer: dict[str, Any]) -> None:
    box.hosted.fault(REGISTER, **answer)
    job = box.hosted.add_stage(NONSENSE)
    worker = box.run_once()
    assert box.failure(job)["code"] == "bad_job"
    assert worker.log.count("register_skipped") == 1
    assert len(box.hosted.requests(REGISTER)) == 1


@pytest.mark.parametrize(
    "answer",
    [
        {"status": 503, "body": {"error": "busy"}},
        {"status": 403, "body": PAGE},
        {"status": 403, "body": "error code: 1020"},
        {"status": 403},
        {"reset": True},
    ],
)
def test_registration_is_tried_again_until_the_api_understands(
    box: Box, answer: dict[str, Any]
) -> None:
    box.hosted.fault(REGISTER, **answer)
    job = box.hosted.add_stage(NONSENSE)
    box.run_once()
    assert box.failure(job)["code"] == "bad_job"
    assert [call["status"] for call in box.hosted.requests(REGISTER)][-1] == 200
    assert len(box.hosted.requests(REGISTER)) == 2


@pytest.mark.parametrize("missing", range(3))
@pytest.mark.parametrize("status", [401, 403])
def test_a_refused_secret_ends_the_worker_with_78_and_says_so(
    box: Box, missing: int, status: int
) -> None:
    *absent, call = (REGISTER, "POST */heartbeat", POLL)[: missing + 1]
    for name in absent:
        box.hosted.fault(name, times=-1, status=404, body=PAGE)
    box.hosted.fault(call, status=status, body={"error": {"code": "unauthorized"}})
    worker = box.start()
    assert worker.wait() == 78
    assert f"refused VIDEOGEN_WORKER_SECRET ({status})" in worker.log
    assert box.hosted.url in worker.log
    assert len(box.hosted.requests(call)) == 1


# Poll and claim


def test_every_call_to_the_api_carries_the_secret_and_no_other_call_does(
    delivered: Delivered,
) -> None:
    api = [call for call in delivered.requests if call["path"].startswith("/api/videogen/")]
    others = [call for call in delivered.requests if call not in api]
    assert {call["headers"].get("x-videogen-secret") for call in api} == {delivered.secret}
    assert {call["path"].split("/")[1] for call in others} == {"frames", "api"}
    assert not [call for call in others if delivered.secret in str(call)]
    assert not [call for call in api if delivered.token in str(call)]
    frames = [call for call in others if call["path"].startswith("/frames/")]
    assert not [call for call in frames if delivered.token in str(call)]


def test_the_secret_is_never_part_of_an_address(delivered: Delivered) -> None:
    addresses = str([(call["path"], call["query"]) for call in delivered.requests])
    for secret in (delivered.secret, delivered.token):
        assert secret not in addresses
        assert base64.b64encode(secret.encode()).decode() not in addresses


def test_a_poll_names_the_worker(delivered: Delivered) -> None:
    polls = [call for call in delivered.requests if call["path"].endswith("/pending")]
    assert len(polls) == 3
    assert all(call["query"] == {"workerId": "test-worker"} for call in polls)


def test_a_job_is_claimed_before_any_work(delivered: Delivered) -> None:
    claim = delivered.seen("claim")[0]
    assert (claim["job"], claim["data"]["workerId"]) == (delivered.new, "test-worker")
    assert claim["seq"] < delivered.seen("frame.get")[0]["seq"]
    assert claim["seq"] < delivered.seen("comfyui.prompt")[0]["seq"]


def test_the_next_poll_follows_a_job_at_once(delivered: Delivered) -> None:
    offers = [event["job"] for event in delivered.seen("pending")]
    assert offers == [delivered.new, delivered.old, None]


@pytest.mark.parametrize(("shape", "prompt"), [(0, "walk on, part 0"), (1, "an older walk")])
def test_both_shapes_of_stage_data_become_a_film(
    delivered: Delivered, shape: int, prompt: str
) -> None:
    done = delivered.outcomes[shape]
    assert (done["frames"], len(done["clips"]), done["watermarked"]) == (120, 1, False)
    graphs = delivered.seen("comfyui.text")[shape]["data"]["prompt"]
    kinds = [node for node in graphs.values() if node["class_type"] == "CLIPTextEncode"]
    assert prompt in [node["inputs"]["text"] for node in kinds]


@pytest.mark.parametrize(
    ("own", "asked", "least"),
    [
        ("0.3", None, 0.3),
        ("0.05", 0.4, 0.4),
        ("600", 0.1, 0.1),
        ("0.3", "soon", 0.3),
        ("0.3", -1, 0.3),
        ("0.3", 1e12, 0.3),
    ],
)
def test_idle_polls_keep_the_interval_and_a_wait_the_api_asks_for(
    box: Box, own: str, asked: Any, least: float
) -> None:
    box.hosted.set_options(nextPollSec=asked)
    box.start(POLL_INTERVAL_S=own)
    seq = 0
    for _ in range(3):
        seq = box.hosted.wait("pending", after=seq)["seq"]
    assert all(gap >= least for gap in gaps(box.hosted.requests(POLL)[:3]))


@pytest.mark.parametrize("status", [404, 409, 410])
def test_a_job_that_somebody_else_holds_is_let_go_untouched(service: Service, status: int) -> None:
    hosted, after = service.hosted, service.hosted.now()
    hosted.fault("PATCH */claim", status=status, body={"error": {"code": "not_yours"}})
    service.refuse(NONSENSE)
    verbs = [call["path"].rpartition("/")[2] for call in service.calls("* /api/*", after)]
    told = [verb for verb in verbs if verb not in ("heartbeat", "no-such-call")]
    first = told.index("claim")
    assert told[first : first + 4] == ["claim", "pending", "claim", "fail"]


@pytest.mark.parametrize("status", [405, 501])
def test_an_api_without_claim_is_said_once_and_served(box: Box, status: int) -> None:
    box.hosted.fault("PATCH */claim", times=-1, status=status, body={"error": "no such call"})
    box.hosted.add_stage(NONSENSE)
    worker = box.start()
    first = box.hosted.wait("fail.rejected")
    # Nothing was claimed, so this sandbox knows no holder and offers the job again.
    box.hosted.wait("fail.rejected", after=first["seq"])
    assert worker.log.count("claim_skipped") == 1


@pytest.mark.parametrize(
    "job_id",
    [
        "../../escaped",
        "a/b",
        "..",
        "",
        "with space",
        "line\n",
        "é",
        "%2e%2e",
        "x" * 129,
        7,
        None,
        ["a"],
    ],
)
def test_a_job_whose_id_is_no_plain_name_is_left_alone(service: Service, job_id: Any) -> None:
    hosted, box = service.hosted, service.box
    # With this poll the job of the test before is cleared away.
    hosted.wait("pending", after=hosted.now())
    before, after = files_of(box), hosted.now()
    offer = {"id": job_id, "stageData": NONSENSE}
    row = hosted.add_stage(None, raw=offer)
    offered = hosted.wait("pending", row, after=after)
    # The second offer means that the first one has been dealt with.
    hosted.wait("pending", row, after=offered["seq"])
    hosted.cancel(row)
    assert not [c for c in service.calls("PATCH *", after) if row in c["path"] or "%" in c["path"]]
    assert not service.calls("PATCH *", after)
    assert files_of(box) == before


@pytest.mark.parametrize("offer", ["text", ["list"], 5, {"stageData": {}}])
def test_an_offer_that_is_no_job_is_left_alone(service: Service, offer: Any) -> None:
    hosted, after = service.hosted, service.hosted.now()
    row = hosted.add_stage(None, raw=offer)
    offered = hosted.wait("pending", row, after=after)
    hosted.wait("pending", row, after=offered["seq"])
    hosted.cancel(row)
    assert not service.calls("PATCH *", after)


def files_of(box: Box) -> set[str]:
    """Everything on the machine near the worker but its log, the hosted side and what a ComfyUI
    makes that was booted for a job before.
    """
    theirs = {"hosted", "comfyui"}
    paths = (path for path in box.folder.parent.rglob("*") if not theirs & set(path.parts))
    return {str(path) for path in paths if path.suffix != ".log"}


# Stage data


def new_shape(**changes: Any) -> dict[str, Any]:
    good = {"frames": [URL, URL], "clipPrompts": ["walk"], "watermark": False}
    stage = {**good, **changes}
    return {name: value for name, value in stage.items() if value != "absent"}


def old_shape(**changes: Any) -> dict[str, Any]:
    stage = {"imageUrl": URL, "endImageUrl": URL, "klingPrompt": "walk", **changes}
    return {name: value for name, value in stage.items() if value != "absent"}


BAD_JOBS: list[tuple[Any, str, str, str]] = [
    (None, "stageData", "None", "an object"),
    ("text", "stageData", "'text'", "an object"),
    ([1], "stageData", "[1]", "an object"),
    (new_shape(watermark="absent"), "stageData.watermark", "None", "true or false"),
    (new_shape(watermark="yes"), "stageData.watermark", "'yes'", "true or false"),
    (new_shape(watermark=1), "stageData.watermark", "1", "true or false"),
    (old_shape(watermark=None), "stageData.watermark", "None", "true or false"),
    (new_shape(frames=URL), "stageData.frames", URL, "a list of"),
    (new_shape(frames=[URL, 5]), "stageData.frames", "5", "a list of"),
    (new_shape(frames=[]), "stageData.frames", "0 of them", "2 to 6"),
    (new_shape(frames=[URL]), "stageData.frames", "1 of them", "2 to 6"),
    (new_shape(frames=[URL] * 7), "stageData.frames", "7 of them", "2 to 6"),
    (new_shape(frames=[URL, "a.png"]), "stageData.frames", "'a.png'", "http(s) addresses"),
    (new_shape(frames=[URL, "file:///etc/passwd"]), "stageData.frames", "file:///", "http(s)"),
    (new_shape(frames=[URL, "http://[x"]), "stageData.frames", "'http://[x'", "http(s)"),
    (
        new_shape(frames=[URL, "https://me:pw@a.example/"]),
        "stageData.frames",
        "a.example",
        "credentials",
    ),
    (new_shape(clipPrompts="absent"), "stageData.clipPrompts", "None", "a list of prompts"),
    (new_shape(clipPrompts="walk"), "stageData.clipPrompts", "'walk'", "a list of prompts"),
    (new_shape(clipPrompts=[]), "stageData.clipPrompts", "0 of them", "1 prompts"),
    (new_shape(clipPrompts=["a", "b"]), "stageData.clipPrompts", "2 of them", "1 prompts"),
    (new_shape(clipPrompts=["x" * 8001]), "stageData.clipPrompts", "xxx", "at most 8000"),
    (new_shape(clipPrompts=["\ud800"]), "stageData.clipPrompts", "ud800", "text"),
    (old_shape(klingPrompt="absent"), "stageData.klingPrompt", "None", "a list of prompts"),
    (old_shape(endImageUrl="absent"), "stageData.imageUrl/endImageUrl", "None", "addresses"),
    (old_shape(imageUrl="a.png"), "stageData.imageUrl/endImageUrl", "'a.png'", "http(s)"),
]


@pytest.mark.parametrize(("stage", "field", "came", "expected"), BAD_JOBS)
def test_a_bad_job_is_failed_with_field_value_and_expectation(
    service: Service, stage: Any, field: str, came: str, expected: str
) -> None:
    error = service.refuse(stage)
    assert (error["code"], error["retryable"]) == ("bad_job", False)
    told = re.search(r"(stageData\S*) is (.*); expected (.*)\.$", error["message"])
    assert told, error
    assert told[1] == field
    assert came in told[2]
    assert expected in told[3]


@pytest.mark.parametrize("frames", range(2, 7))
def test_two_to_six_frames_make_one_clip_fewer(frames: int) -> None:
    prompts = [f"part {n}" for n in range(frames - 1)]
    plan = parse_stage_data(new_shape(frames=[URL] * frames, clipPrompts=prompts))
    assert (len(plan.frames), list(plan.prompts)) == (frames, prompts)
    with pytest.raises(JobError, match="clipPrompts"):
        parse_stage_data(new_shape(frames=[URL] * frames, clipPrompts=[*prompts, "one more"]))


# An API in trouble


@pytest.mark.parametrize(
    "answer",
    [
        {"status": 403, "body": PAGE},
        {"status": 401, "body": PAGE},
        {"status": 401, "body": {"error": "the secret was right a moment ago"}},
        {"status": 403, "body": {"error": "the secret was right a moment ago"}},
        {"status": 403, "body": "Forbidden"},
        {"status": 404, "body": PAGE},
        {"status": 200, "body": PAGE},
        {"status": 200, "body": "not json"},
        {"status": 200, "body": ["a list"]},
        {"status": 200, "body": {"no": "job"}},
        {"status": 200, "body": "[" * 100_000},
        {"status": 429, "body": {"error": "slow down"}},
        {"status": 500, "body": {"error": "oops"}},
        {"status": 502, "body": PAGE},
        {"reset": True},
        {"truncate": 3},
        {"endless": True},
    ],
    ids=lambda answer: "-".join(map(str, answer.values()))[:24],
)
def test_a_poll_that_brings_no_verdict_is_made_again_with_a_pause(
    service: Service, answer: dict[str, Any]
) -> None:
    hosted, before, mark = service.hosted, service.worker.log, service.hosted.now()
    hosted.fault(POLL, **answer)
    faulted = hosted.wait("fault", after=mark)
    again = hosted.wait("request.start", after=faulted["seq"], where=is_poll)
    # Half a second is the shortest first pause; the interval between polls is a fifth of it.
    assert again["t"] - faulted["t"] >= 0.5
    assert service.worker.log[len(before) :].count("api_unavailable") == 1


@pytest.mark.parametrize(
    "answer", [{"status": 204}, {"body": ""}, {"body": "null"}, {"body": None}]
)
def test_nothing_at_all_is_an_empty_queue(service: Service, answer: dict[str, Any]) -> None:
    hosted, before, mark = service.hosted, service.worker.log, service.hosted.now()
    hosted.fault(POLL, **answer)
    faulted = hosted.wait("fault", after=mark)
    hosted.wait("pending", after=faulted["seq"])
    assert "api_unavailable" not in service.worker.log[len(before) :]


def is_poll(event: dict[str, Any]) -> bool:
    return str(event["data"]["path"]).endswith("/pending")


def test_pauses_grow_and_only_the_first_of_a_few_failures_is_logged(service: Service) -> None:
    hosted, before = service.hosted, service.worker.log
    hosted.fault(POLL, times=3, status=500, body={"error": "oops"})
    started = hosted.now()
    hosted.wait("pending", after=hosted.wait("fault", after=started)["seq"])
    pauses = gaps([c for c in hosted.requests(POLL) if c["status"] == 500][-3:])
    assert pauses[0] >= 0.5
    assert pauses[1] >= 1.0
    log = service.worker.log[len(before) :]
    assert (log.count("api_unavailable"), log.count("api_back tries=3")) == (1, 1)


@pytest.mark.parametrize("form", ["seconds", "date"])
def test_retry_after_is_honoured(service: Service, form: str) -> None:
    hosted = service.hosted
    wait = "2" if form == "seconds" else formatdate(time.time() + 3, usegmt=True)
    since = hosted.now()
    hosted.fault(POLL, status=429, body={"error": "slow down"}, headers={"Retry-After": wait})
    hosted.wait("pending", after=hosted.wait("fault", after=since)["seq"])
    calls = hosted.requests(POLL)
    slow = max(n for n, call in enumerate(calls) if call["status"] == 429)
    # A date has whole seconds only; without the header the pause would be one second at most.
    assert calls[slow + 1]["t"] - calls[slow]["t"] >= 1.5


def test_no_pause_is_longer_than_a_minute() -> None:
    assert max(backoff(tries) for tries in range(1, 100)) <= 60
    assert backoff(1, asked=3600.0) == 60
    assert backoff(1, asked=30.0) == 30
    assert backoff(4, asked=0.0) >= 4


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("120", 120.0),
        ("Mon, 23 Nov 2026 08:01:00 GMT", 60.0),
        (None, None),
        ("", None),
        ("soon", None),
        ("-5", None),
    ],
)
def test_retry_after_is_read_as_seconds_or_date(value: str | None, seconds: float | None) -> None:
    assert parse_retry_after(value, now=1_795_420_800.0) == seconds


@pytest.mark.parametrize("status", [301, 302, 307, 308])
def test_a_redirect_of_the_api_is_not_followed_and_leaks_nothing(
    service: Service, session_hosted: Hosted, status: int
) -> None:
    hosted, before = service.hosted, service.worker.log
    target = f"{session_hosted.url}/elsewhere"
    since = hosted.now()
    hosted.fault(POLL, redirect=target, status=status)
    hosted.wait("pending", after=hosted.wait("fault", after=since)["seq"])
    log = service.worker.log[len(before) :]
    assert f"redirects to {target}" in log
    assert not session_hosted.requests("* /elsewhere*")


# Outcomes


@pytest.mark.parametrize("verb", ["complete", "fail"])
def test_an_outcome_is_sent_four_times_at_once_and_then_between_polls(box: Box, verb: str) -> None:
    hosted = box.hosted
    hosted.fault(f"PATCH */{verb}", times=4, status=503, body=PAGE)
    job = box.add_job() if verb == "complete" else hosted.add_stage(NONSENSE)
    box.start()
    hosted.wait(verb, job, timeout=60)
    calls = [c for c in hosted.requests() if c["path"].endswith((f"/{job}/{verb}", "/pending"))]
    kinds = [call["path"].rpartition("/")[2] for call in calls]
    first = kinds.index(verb)
    assert kinds[first : first + 4] == [verb] * 4
    assert kinds[first + 4] == "pending"
    assert kinds.count(verb) == 5
    pauses = gaps(calls[first : first + 4])
    assert all(pause >= least for pause, least in zip(pauses, (0.5, 1, 2), strict=True))
    assert hosted.job(job)["deliveries"] == 1
    bodies = [str(call["json"]) for call in calls if call["json"]]
    assert len(set(bodies)) == 1


def test_an_outcome_that_waits_does_not_hold_up_the_next_job(box: Box) -> None:
    hosted = box.hosted
    first = hosted.add_stage(NONSENSE)
    second = hosted.add_stage(NONSENSE)
    hosted.fault(f"PATCH */{first}/fail", times=-1, reset=True)
    box.start()
    hosted.wait("fail", second)
    assert hosted.job(first)["state"] == "claimed"
    hosted.clear_faults()
    hosted.wait("fail", first)


@pytest.mark.parametrize("status", [404, 409, 410, 422])
def test_a_final_answer_ends_an_outcome(service: Service, status: int) -> None:
    hosted, before, mark = service.hosted, service.worker.log, service.hosted.now()
    hosted.fault("PATCH */fail", status=status, body={"error": {"code": "decided"}})
    job = hosted.add_stage(NONSENSE)
    answered = hosted.wait("fault", after=mark, where=lambda e: job in e["data"]["path"])
    again = hosted.wait("pending", after=answered["seq"])
    hosted.wait("pending", after=again["seq"])
    assert len(hosted.requests(f"PATCH */{job}/fail")) == 1
    assert not (service.box.state / "jobs" / job).exists()
    assert f"outcome_refused job={job}" in service.worker.log[len(before) :]


@pytest.mark.parametrize(
    "answer",
    [
        {"status": 410, "body": PAGE},
        {"status": 500, "body": {"error": "oops"}},
        {"redirect": "/api/videogen/register", "status": 307},
        {"landThenReset": True},
    ],
    ids=lambda answer: "-".join(map(str, answer.values()))[:24],
)
def test_an_outcome_without_a_verdict_is_sent_again(box: Box, answer: dict[str, Any]) -> None:
    hosted = box.hosted
    hosted.fault("PATCH */fail", **answer)
    job = hosted.add_stage(NONSENSE)
    worker = box.run_once()
    assert worker.process.returncode == 1, worker.log
    assert len(hosted.requests(f"PATCH */{job}/fail")) == 2
    assert hosted.job(job)["state"] == "failed"


def test_the_worker_serves_on_after_an_outcome_that_needed_a_retry(box: Box) -> None:
    box.hosted.fault("PATCH */fail", status=500, body={"error": "oops"})
    job = box.hosted.add_stage(NONSENSE)
    worker = box.start()
    failed = box.hosted.wait("fail", job)
    with contextlib.suppress(NothingHappened):
        # By then whatever was planned for the first failure of the call has been due.
        later = failed["t"] + 1.5
        box.hosted.wait("pending", after=failed["seq"], timeout=6, where=lambda e: e["t"] > later)
    assert worker.process.poll() is None, worker.log
