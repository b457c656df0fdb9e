"""What ComfyUI, the API and Blob may answer."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from bench.hostile.case import GOOD, MIB, PAGE, Case, Place, corrupt, nested, table, zeros
from sandbox.evil import (
    BINARY,
    GIF,
    NEVER_ENDING,
    OK,
    PAUSE_S,
    PING,
    Act,
    EvilComfy,
    answer,
    done,
    endless,
    frame,
    head_of,
    raw,
    redirect,
    success,
    websocket,
)

ALWAYS = 1_000_000
FORGED = "x\n2099-01-01 00:00:00,000 INFO delivered\r\x1b[2J\u202e"


def comfyui(place: Place) -> Iterator[Case]:
    """Each with the path, the act, and how often before it behaves again."""
    garbage = garbage_of(place)

    def rows(expected: str, path: str, acts: dict[str, Any], times: int = ALWAYS) -> Iterator[Case]:
        named = {f"{path}: {name}": (path, act, times) for name, act in acts.items()}
        return table("ComfyUI", expected, named)

    yield from rows("bad_clip", "/view", {k: answer(v) for k, v in no_films(place).items()})
    gone = {
        "404": answer(b"", "404 x"),
        "a redirect": redirect(f"http://localhost:{place.bait}/x"),
        "a film cut short": raw(OK + b"Content-Length: 99999\r\n\r\n\0\0\0 ftyp"),
    }
    yield from rows("comfyui_failed", "/view", gone)
    yield from rows("renders", "/view", {"404 once": answer(b"", "404 x")}, 1)
    yield from rows("comfyui_failed", "/history", RECORDS)
    memory = {"memory": error("CUDA out of memory " + "x" * 9999)}
    yield from rows("gpu_out_of_memory", "/history", memory)
    yield from rows("renders", "/history", garbage, 1)
    yield from rows("renders", "/queue", {k: garbage[k] for k in ("a page", "a gigabyte")}, 1)
    yield from rows("comfyui_failed", "/upload", garbage)
    names = {"an object": {"name": {}}, "a number": {"name": 5}, "nothing": {}}
    wrong = {f"a name that is {name}": answer(body) for name, body in names.items()}
    yield from rows("comfyui_failed", "/upload", wrong)
    refused = {name: answer(body, "400 Bad Request") for name, body in REFUSALS.items()}
    refused["a page"] = answer(PAGE, "403 Forbidden")
    yield from rows("comfyui_rejected", "/prompt", refused)
    node = {"type": "missing_node_type", "extra_info": {"class_type": "x\n\x1b[2J"}}
    missing = {"a node": answer({"error": node}, "400 x")}
    yield from rows("comfyui_missing_node", "/prompt", missing)


def no_films(place: Place) -> dict[str, bytes]:
    """What may come as a clip, and is none."""
    film = (place.folder / "private.mp4").read_bytes()
    uri = (place.folder / "private.mp4").as_uri()
    return {
        "nothing": b"",
        "a page": PAGE,
        "a picture": GOOD,
        "half a film": film[: len(film) // 2],
        "a film's head": b"\0\0\0\x20ftypisom",
        "a playlist of a film here": f"#EXTM3U\n#EXTINF:5,\n{uri}\n#EXT-X-ENDLIST\n".encode(),
        "an ffconcat script of a film here": b"ffconcat version 1.0\nfile private.mp4\n",
        "an MP4 whose index is noise": corrupt(film[:64]) + bytes(range(256)) * 64,
    }


def garbage_of(place: Place) -> dict[str, Act]:
    return {
        "a page": answer(PAGE),
        "a list": answer([]),
        "text": answer(b"{"),
        "nested 900 deep": answer(nested(900)),
        "nested 100000 deep": answer(nested(100_000)),
        "a gigabyte": endless(OK + b"\r\n", b"{" + b" " * MIB),
        "a megabyte packed": answer(zeros(MIB), "200 OK", "Content-Encoding: deflate"),
        "500": answer(b"", "500 x"),
        "a reset": raw(b""),
        "a redirect": redirect(f"http://localhost:{place.bait}/x"),
    }


def error(message: str) -> dict[str, Any]:
    told = {"exception_type": message, "exception_message": message, "node_type": message}
    return {"status": {"status_str": "error", "messages": [["execution_error", told]]}}


RECORDS: dict[str, Any] = {
    "a path outside": success(GIF | {"filename": "../../x.txt"}),
    "no film": success(),
    "numbers for names": success({"filename": 1, "subfolder": 2, "type": 3}),
    "texts for films": success("a", 1, None),
    "a list for outputs": {"status": {"status_str": "success"}, "outputs": []},
    "no status": {"outputs": {"1": {"gifs": [GIF]}}},
    "an error of 1 MB": error("x" * MIB),
    "an error of log lines": error(FORGED),
    "an error of numbers": {"status": {"status_str": "error", "messages": [[1, 2]]}},
    "messages nested": {"status": {"status_str": "error", "messages": [[[[[]]]]]}},
}
REFUSALS: dict[str, Any] = {
    "texts for errors": {"error": "no", "node_errors": {"1": "no"}},
    "lists for errors": {"error": [], "node_errors": {"1": {"errors": [1, None, "x"]}}},
    "an error nested 900 deep": json.loads(nested(900)),
    "a message of 1 MB": {"error": {"message": "x\n" * MIB}},
}


def comfyui_sockets(place: Place) -> Iterator[Case]:
    texts = [b"", b"not json {", b"\xff\xfe", b"null", b"[]", b'{"type":3}', b'{"data":[]}']
    rows: dict[str, Act] = {
        "garbage": websocket(lambda _: [frame(one) for one in texts] + [frame(b"\0\1", BINARY)]),
        "a message of 8 MB": websocket(lambda _: [frame("x" * 8 * MIB)]),
        "a frame of 2^60 bytes": websocket(lambda _: [head_of(2**60), *[bytes(MIB)] * 9]),
        "a frame of 2^64 - 1 bytes": websocket(lambda _: [head_of(2**64 - 1), bytes(MIB)]),
        "fragments without end": websocket(lambda _: fragments()),
        "pings without end": websocket(lambda _: [frame(b"x" * 125, PING)] * 3000),
        "a long ping": websocket(lambda _: [frame(b"x" * 9000, PING)]),
        "unknown opcodes": websocket(lambda _: [frame(b"x", 5), frame(b"x", 11)]),
        "reserved bits": websocket(lambda _: [b"\xf1\x01x"]),
        "a message nested 100000 deep": websocket(lambda _: [frame(nested(100_000))]),
        "steps of 10^400": websocket(huge_steps),
        "a frame that drips": websocket(lambda _: drip()),
        "a page": answer(PAGE),
        "a wrong key": raw(b"HTTP/1.1 101 x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n"),
        "a redirect": redirect(f"ws://localhost:{place.bait}/x"),
        "headers without end": endless(b"HTTP/1.1 101 x\r\n", b"X: y\r\n", PAUSE_S),
        "no answer": raw(b""),
    }
    named = {f"websocket: {name}": ("/ws", act, ALWAYS) for name, act in rows.items()}
    yield from table("ComfyUI", "renders", named)


def huge_steps(comfy: EvilComfy) -> list[bytes]:
    data = {"max": 1, "prompt_id": comfy.prompt_id, "node": comfy.sampler}
    values: list[Any] = [10**400, -(10**400), -1, 1e308, "x", None, []]
    told = [{"type": "progress", "data": {**data, "value": value}} for value in values]
    return [*(frame(json.dumps(one)) for one in told), *done(comfy)]


def fragments() -> Iterator[bytes]:
    yield frame(b"x", final=False)
    for _ in range(50):
        yield frame(b"x" * MIB, 0, final=False)


def drip() -> Iterator[bytes]:
    yield head_of(9_000_000)
    for _ in range(9000):
        yield b"x"


def api(place: Place) -> Iterator[Case]:
    """Each with the call and the act."""
    acts: dict[str, Act] = {
        "a page": answer(PAGE),
        "a page as 401": answer(PAGE, "401 Unauthorized"),
        "text": answer(b"not json"),
        "a list": answer(["a"]),
        "a number": answer(7),
        "no job in it": answer({"no": "job"}),
        "cut short": raw(OK + b'Content-Length: 99\r\n\r\n{"job": '),
        "nested 100000 deep": answer(nested(100_000)),
        "an answer of 20 MB": answer({"job": None, "x": "x" * 20 * MIB}),
        "an answer without end": endless(OK + b"\r\n", b" " * MIB),
        "200 MB packed": answer(zeros(200 * MIB), "200 OK", "Content-Encoding: deflate"),
        "a redirect": redirect(f"http://localhost:{place.bait}/x", "307 Temporary"),
        "a redirect to a file": redirect("file:///etc/passwd"),
        "500 header lines": raw(OK + b"X: y\r\n" * 500 + b'\r\n{"job": null}'),
        "a reset": raw(b""),
        "no HTTP at all": raw(b"\0\1\2\3" * 100),
        "429 with a Retry-After of text": answer({}, "429 x", "Retry-After: \xff\xfe soon"),
        "a wrong Date": answer({"job": None}, "200 OK", "Date: Wed, 99 Foo 99999 99:99:99 GMT"),
        "a poll at once, please": answer({"job": None, "nextPollSec": 1e-9}),
        "NaN and huge numbers": answer(b'{"job": null, "nextPollSec": NaN, "x": 1e999}'),
    }
    claims = {
        "a list": answer([]),
        "a lease nested": answer({"leaseUntil": json.loads(nested(900))}),
        "a lease of text": answer({"leaseUntil": "x" * MIB}),
        "a lease of year 9999": answer({"leaseUntil": "9999-12-31T23:59:59+00:00"}),
        "a page": answer(PAGE),
        "404 without a body": answer(b"", "404 Not Found"),
    }
    failing = ("a page", "cut short", "a redirect", "an answer without end", "no HTTP at all")
    # As a success it would be one, and the job be offered again when its lease is over.
    fails = {name: acts[name] for name in failing} | {"a page": answer(PAGE, "502 Bad Gateway")}
    for call, given in (("pending", acts), ("claim", claims), ("fail", fails)):
        named = {f"{call}: {name}": (f"/{call}", act) for name, act in given.items()}
        yield from table("API", "goes on", named)


def heartbeats(_place: Place) -> Iterator[Case]:
    rows: dict[str, Act] = {
        "cancels of everything": answer({"cancel": [None, 1, [], {}, "*", "../.."]}),
        "cancels nested": answer({"cancel": json.loads(nested(900))}),
        "401": answer({}, "401 Unauthorized"),
        "a page": answer(PAGE),
        **NEVER_ENDING,
    }
    yield from table("heartbeats", "goes on", rows)


def blob(place: Place) -> Iterator[Case]:
    rows: dict[str, Act] = {
        "a page": answer(PAGE),
        "a list": answer([]),
        "no url": answer({"pathname": "x"}),
        "a number for the url": answer({"url": 5}),
        "nested 100000 deep": answer(nested(100_000)),
        "an answer without end": endless(OK + b"\r\n", b" " * MIB),
        "a redirect": redirect(f"http://localhost:{place.bait}/x", "307 Temporary"),
        "a page as 500": answer(PAGE, "500 x"),
        "an error of numbers": answer({"error": {"code": "unknown_error", "message": []}}, "400 x"),
    }
    yield from table("Blob", "delivered", rows)
    refusal = {"error": {"code": "bad_request", "message": "x\n2099-01-01 INFO delivered" * 9999}}
    yield Case("Blob", "a refusal of 240 kB", "upload_failed", answer(refusal, "403 Forbidden"))


def slow(_place: Place) -> Iterator[Case]:
    frames = {f"a frame host: {name}": act for name, act in NEVER_ENDING.items()}
    yield from table("slow peers", "job_timeout", frames)
    clips = {
        f"ComfyUI {path}: {name}": (path, NEVER_ENDING[name], ALWAYS)
        for path in ("/history", "/view", "/prompt")
        for name in ("headers that drip", "a trailer without end", "silence")
    }
    yield from table("slow peers", "clip_timeout", clips)
