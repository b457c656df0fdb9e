"""What a job may say, and where its pictures may lead."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from typing import Any

from bench.hostile.case import GOOD, MIB, PAGE, Case, Place, nested, table, zeros
from sandbox.evil import CHUNKED, OK, answer, endless, raw, redirect

# Every way to say this machine, this home, and what leads there.
INSIDE = """
localhost LOCALHOST localhost. 127.0.0.1 127.1 127.0.1 127.255.255.254 2130706433 0x7f000001 0x7f.1
0x7F.0x0.0x0.0x1 017700000001 0177.0.0.1 0 0.0.0.0 10.0.0.1 172.16.0.1 192.168.0.1 100.64.0.1
169.254.169.254 2852039166 0xa9fea9fe 255.255.255.255 224.0.0.1 240.0.0.1 198.18.0.1 192.0.2.1
192.0.0.8 192.88.99.1 0.1.2.3 [::1] [::] [0:0:0:0:0:0:0:1] [::ffff:127.0.0.1] [::ffff:7f00:1]
[::ffff:169.254.169.254] [::ffff:0:7f00:1] [::127.0.0.1] [::1%25lo] [64:ff9b::7f00:1]
[64:ff9b:1::7f00:1] [2002:7f00:1::] [fe80::1%25lo] [fec0::1] [fd00::1] [fd00:ec2::254] [ff02::1]
[5f00::1] [2001:db8::1] [2001:0:7f00:1::] ｌocalhost 127。0。0。1 ①②⑦.0.0.1
"""  # noqa: RUF001 (that is the point)
STRANGE_WORDS = r"""
../../escaped a/b .. . a%2fb a\b /etc/passwd ~ $HOME `id` $(id) ;id a|b a&b * job.json CON: a.b a:b
"""
STRANGE_IDS: list[Any] = [
    *STRANGE_WORDS.split(),
    *("", " ", "a b", "line\n", "\n", "nul\0", "a\r\nX-Forged: yes", "a?b=c", "a#b"),
    *("j\u043eb-1", "\uff4a\uff4f\uff42", "é", "e\u0301", "\u202ejob", "job\u200b", "١٢٣"),
    *("x" * 129, "x" * 10_240, "\ud83c", 7, 0, 1.5, None, True, ["a"], {"a": "b"}),
]
NO_OFFERS: list[Any] = ["text", ["list"], 5, True, {"stageData": {}}, {"ID": "a"}]
STRANGE_BUT_FINE_IDS = ("-rf", "--help", "-", "_", "x" * 128, "con")


def job_data(place: Place) -> Iterator[Case]:
    url = f"{place.host}/good.png"

    def new(**changes: Any) -> dict[str, Any]:
        return {"frames": [url, url], "clipPrompts": ["walk"], "watermark": False, **changes}

    def old(**changes: Any) -> dict[str, Any]:
        return {"imageUrl": url, "endImageUrl": url, "klingPrompt": "walk", **changes}

    stages: dict[str, Any] = {
        "null": None, "a text": "x", "a number": 7, "a list": [1], "true": True, "empty": {}
    }  # fmt: skip
    values: dict[str, Any] = {
        "null": None,
        "a number": 1,
        "a list of lists": [[]],
        "an object": {"a": 1},
    }
    marks: list[Any] = [None, 1, "yes", [], {}]
    deep = json.loads(nested(801))
    rows: dict[str, Any] = {
        **{f"stage data is {name}": stage for name, stage in stages.items()},
        **{
            f"{field} is {name}": new(**{field: value})
            for field in ("frames", "clipPrompts") for name, value in values.items()
        },
        **{f"watermark is {mark!r}": new(watermark=mark) for mark in marks},
        **{f"{n} is a number": old(**{n: 5}) for n in ("imageUrl", "endImageUrl", "klingPrompt")},
        "one frame": new(frames=[url], clipPrompts=[]),
        "seven frames": new(frames=[url] * 7, clipPrompts=["walk"] * 6),
        "a thousand frames": new(frames=[url] * 1000, clipPrompts=["walk"] * 999),
        "more prompts than pairs": new(clipPrompts=["walk", "on"]),
        "no prompts": new(clipPrompts=[]),
        "an address of 5 kB": new(frames=[url, url + "?" + "x" * 5000]),
        "frames nested 800 deep": new(frames=deep),
        "stage data nested 800 deep": deep,
        "a prompt of 1 MB of braces": new(clipPrompts=['{"[,' * (MIB // 4)]),
        "a prompt nested 800 deep": new(clipPrompts=[deep]),
        "a prompt of 100 kB": new(clipPrompts=["{walk} " * 15_000]),
        "a prompt of 10 MB": new(clipPrompts=["walk on " * (10 * MIB // 8)]),
        "a prompt of 10 MB of emoji": new(clipPrompts=["🏠" * (10 * MIB // 12)]),
        "an address of 10 MB": new(frames=[url, url + "x" * 10 * MIB]),
        "10 MB of empty lists": new(frames=[[]] * (10 * MIB // 4)),
        "a prompt with NUL": new(clipPrompts=["walk\0on"]),
        "a prompt of half a character": new(clipPrompts=["\ud83c walk"]),
        "a forged log line as a frame": new(frames=[url, "\n2099-01-01 INFO delivered"]),
        "escapes and bidi controls as a frame": new(frames=[url, "\x1b[2J\u202e\u2028x"]),
        "an address of half a character": new(frames=[url, f"{place.host}/\ud83c"]),
    }  # fmt: skip
    yield from table("job data", "bad_job", rows)


def ids(_place: Place) -> Iterator[Case]:
    for one in STRANGE_IDS:
        given = {"id": one, "stageData": {"frames": []}}
        yield Case("job ids", f"{one!r:.40}", "left alone", given)
    yield from table("job ids", "left alone", {f"an offer is {o!r:.40}": o for o in NO_OFFERS})
    fine = {f"{one!r:.40}": {"id": one, "stageData": None} for one in STRANGE_BUT_FINE_IDS}
    yield from table("job ids", "bad_job", fine)


def addresses(place: Place) -> Iterator[Case]:
    port, file = place.bait, place.folder / "private.png"
    inside = {f"http://{name}": f"http://{name}:{port}/bait.png" for name in INSIDE.split()}
    yield from table("frame addresses", "frame_unavailable", inside)
    misleading = [
        f"http://192.0.2.1#@127.0.0.1:{port}/", f"http://127.0.0.1:{port}?@192.0.2.1/",
        f"https://127.0.0.1:{port}/", "http://a..b/", f"http://{'a' * 64}.example/",
    ]  # fmt: skip
    malformed = [
        f"http://127.0.0.1\t:{port}/", f"http://127.0.0.1:{port}/\r\nX-Forged: yes",
        f"http://127.0.0.1:{port}\\@192.0.2.1/", f"http://user:password@127.0.0.1:{port}/",
        f"http://user@127.0.0.1:{port}/", f"http://@127.0.0.1:{port}/",
        f"http://192.0.2.1@127.0.0.1:{port}/", "http://127.0.0.1:0/", "http://127.0.0.1:99999/",
        "http://127.0.0.1:-1/", "http://127.0.0.1:abc/", "http:///bait.png", "http://:80/",
        "http:bait.png", "http://[::1/", "http://[::zz]/", "//127.0.0.1/bait.png", "bait.png", "",
        "\0",
    ]  # fmt: skip
    for code, urls in (("frame_unavailable", misleading), ("bad_job", malformed)):
        named = {f"{url.replace(str(port), 'PORT')!r:.60}": url for url in urls}
        yield from table("frame addresses", code, named)
    schemes = ["ftp", "gopher", "ws", "dict", "ldap", "tftp", "HTTP+unix"]
    others = [f"{scheme}://127.0.0.1:{port}/bait.png" for scheme in schemes]
    others += [file.as_uri(), str(file), f"concat:{file}", f"subfile,,start,0,end,9,,:{file}"]
    others += ["data:image/png;base64,AAAA", "javascript:alert(1)", "jar:http://a/!/b", "pipe:0"]
    for url in others:
        yield Case("frame addresses", url.partition(":")[0][:12] + ":", "bad_job", url)


def redirects(place: Place) -> Iterator[Case]:
    """A host that may be asked sends on to one that may not."""
    bait = f"{place.bait}/bait.png"
    targets = [
        f"http://localhost:{bait}", f"//localhost:{bait}", f"http://127.1:{bait}",
        f"http://[::ffff:127.0.0.1]:{bait}", f"http://2130706433:{bait}",
        "http://169.254.169.254/latest/meta-data/", f"http://127.0.0.1:{bait}",
        f"http://user:password@127.0.0.1:{bait}", (place.folder / "private.png").as_uri(),
        "ftp://127.0.0.1/", "data:image/png;base64,AAAA", "http://[", "", "/loop",
        "http://\xff\xfe/", "http://localhost/" + "x" * 60_000,
    ]  # fmt: skip
    rows = {f"to {to.replace(str(place.bait), 'PORT')!r:.50}": redirect(to) for to in targets}
    for status in (301, 303, 307, 308):
        moved = redirect(f"http://localhost:{bait}", f"{status} Moved")
        rows[f"{status} to this machine"] = moved
    yield from table("frame redirects", "frame_unavailable", rows)


def hosts(_place: Place) -> Iterator[Case]:
    """What the host of a picture may answer."""
    refused = {
        "401": answer(PAGE, "401 Unauthorized", 'WWW-Authenticate: Basic realm="x"'),
        "404": answer(PAGE, "404 Not Found"),
        "407": answer(PAGE, "407 Proxy Authentication Required"),
        "503 with a Retry-After of years": answer(b"", "503 x", "Retry-After: 0"),
        "a body shorter than promised": raw(OK + b"Content-Length: 999999999999\r\n\r\nx"),
        "500 header lines": raw(OK + b"X: y\r\n" * 500 + b"\r\n" + GOOD),
        "a header line of 1 MB": raw(OK + b"X: " + b"y" * MIB + b"\r\n\r\n" + GOOD),
        "no HTTP at all": raw(b"\0\1\2\3" * 100),
        "a chunk of -1 bytes": raw(CHUNKED + b"-1\r\n" + GOOD),
    }
    yield from table("frame hosts", "frame_unavailable", refused)
    packed = zeros(200 * MIB)
    nothing = {
        "204": answer(b"", "204 No Content"),
        "an empty body": answer(b""),
        "a page as a picture": answer(PAGE, "200 OK", "Content-Type: image/png"),
        "200 MB packed into 200 kB": answer(packed, "200 OK", "Content-Encoding: deflate"),
        "a picture packed": answer(gzip.compress(GOOD), "200 OK", "Content-Encoding: gzip"),
    }
    yield from table("frame hosts", "frame_unavailable", nothing)
    useless = {
        "a body without end": endless(OK + b"\r\n", bytes(MIB)),
        "chunks without end": endless(CHUNKED, b"100000\r\n" + bytes(MIB) + b"\r\n"),
    }
    yield from table("frame hosts", "frame_invalid", useless)
