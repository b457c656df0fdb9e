"""What the sandbox's Blob promises to the worker's tests: the service's answers, by hand."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import pytest
import requests

from sandbox.client import Hosted
from tests.sandbox.callers import FILM, Store

MIB = 1024 * 1024
ALREADY_EXISTS = (
    "This blob already exists, use `allowOverwrite: true` if you want to overwrite it. Or"
    " `addRandomSuffix: true` to generate a unique filename. Read more about this error in our"
    " documentation: https://vercel.link/blob-allow-overwrite"
)


def test_a_chunked_put_is_stored_under_the_md5_of_its_bytes(hosted: Hosted, store: Store) -> None:
    content = bytes(range(256)) * 8192
    halves = iter([content[:1_000_000], content[1_000_000:]])
    answer = store.put("deep folder/ä+b.mp4", halves)
    etag = f'"{hashlib.md5(content).hexdigest()}"'
    assert answer.json() == {
        "url": "https://sandbox0store1234.public.blob.vercel-storage.com"
        "/deep%20folder/%C3%A4%2Bb.mp4",
        "downloadUrl": "https://sandbox0store1234.public.blob.vercel-storage.com"
        "/deep%20folder/%C3%A4%2Bb.mp4?download=1",
        "pathname": "deep folder/ä+b.mp4",
        "contentType": "video/mp4",
        "contentDisposition": 'inline; filename="ä+b.mp4"',
        "etag": etag,
    }
    assert Path(hosted.blobs()["deep folder/ä+b.mp4"]["file"]).read_bytes() == content


def test_a_head_by_pathname_or_url_tells_size_age_and_etag(store: Store) -> None:
    put = store.put("a.mp4", x_cache_control_max_age="3600").json()
    by_name, by_url = store.head("a.mp4").json(), store.head(put["url"]).json()
    assert by_name == by_url
    assert by_name.items() >= {**put, "size": len(FILM)}.items()
    assert by_name["cacheControl"] == "public, max-age=3600"
    assert by_name["uploadedAt"].endswith("Z")
    assert store.head("b.mp4").json()["error"]["code"] == "not_found"


def test_an_existing_blob_is_replaced_only_on_request(store: Store) -> None:
    store.put("a.mp4")
    refused = store.put("a.mp4", b"other")
    assert refused.status_code == 400
    assert refused.json() == {"error": {"code": "bad_request", "message": ALREADY_EXISTS}}
    assert store.put("a.mp4", b"other", x_allow_overwrite="1").status_code == 200
    assert store.head("a.mp4").json()["size"] == len(b"other")


def test_a_put_if_match_is_refused_when_the_etag_differs(store: Store) -> None:
    etag = store.put("a.mp4").json()["etag"]
    stale = store.put("a.mp4", b"2", x_allow_overwrite="1", x_if_match='"0"')
    assert (stale.status_code, stale.json()["error"]["code"]) == (412, "precondition_failed")
    assert store.put("a.mp4", b"2", x_allow_overwrite="1", x_if_match=etag).status_code == 200


def test_a_random_suffix_keeps_two_puts_apart(store: Store) -> None:
    names = {store.put("x/a.mp4", x_add_random_suffix="1").json()["pathname"] for _ in range(2)}
    assert len(names) == 2
    assert all(name.startswith("x/a-") and name.endswith(".mp4") for name in names)


def test_the_wrong_access_is_refused_in_the_services_words(hosted: Hosted, store: Store) -> None:
    hosted.set_options(blobAccess="private")
    refused = store.put("a.mp4")
    assert refused.status_code == 400
    assert refused.json()["error"]["message"] == (
        "Cannot use public access on a private store. The store is configured with private access."
    )
    private = store.put("a.mp4", x_vercel_blob_access="private").json()
    assert private["url"].startswith("https://sandbox0store1234.private.blob.")


def test_a_wrong_token_is_forbidden(store: Store) -> None:
    refused = store.put("a.mp4", authorization="Bearer vercel_blob_rw_Sandbox0Store1234_no")
    assert (refused.status_code, refused.json()["error"]["code"]) == (403, "forbidden")


def test_a_small_json_blob_is_stored_like_any_other(store: Store) -> None:
    answer = store.put("a.json", b'{"a": 1}', Content_Type="application/json")
    assert store.head(answer.json()["url"]).json()["size"] == len(b'{"a": 1}')


def test_a_copy_stands_beside_its_source(hosted: Hosted, store: Store) -> None:
    source = store.put("a.mp4").json()
    params = {"pathname": "b.mp4", "fromUrl": source["url"]}
    assert store.send("PUT", params=params).json()["etag"] == source["etag"]
    assert store.send("POST", "/delete", json={"urls": ["a.mp4"]}).text == "null"
    assert list(hosted.blobs()) == ["b.mp4"]


def test_a_folded_list_goes_page_by_page_through_blobs_and_folders(store: Store) -> None:
    for name in ("f/a/1.mp4", "f/a/2.mp4", "f/b.mp4", "f/c/1.mp4", "g.mp4"):
        store.put(name)
    params, seen = {"prefix": "f/", "mode": "folded", "limit": "1"}, []
    while True:
        page = store.send("GET", params=params).json()
        seen += page["folders"] + [blob["pathname"] for blob in page["blobs"]]
        if not page["hasMore"]:
            break
        params["cursor"] = page["cursor"]
    assert seen == ["f/a/", "f/b.mp4", "f/c/"]


def test_parts_may_arrive_and_be_listed_in_any_order(hosted: Hosted, store: Store) -> None:
    hosted.set_options(minPartBytes=4)
    created = store.mpu("create").json()
    ids = {"key": quote(created["key"], safe=""), "upload_id": created["uploadId"]}
    parts = {3: b"!", 1: b"last", 2: b" one"}
    listed = [
        {
            "partNumber": number,
            "etag": store.mpu("upload", part, part_number=str(number), **ids).json()["etag"],
        }
        for number, part in parts.items()
    ]
    result = store.mpu("complete", json.dumps(listed), **ids).json()
    digests = b"".join(hashlib.md5(parts[number]).digest() for number in (1, 2, 3))
    assert result["etag"] == f'"{hashlib.md5(digests).hexdigest()}-3"'
    assert Path(hosted.blobs()["m ü.mp4"]["file"]).read_bytes() == b"last one!"


def test_only_the_last_part_may_be_small(store: Store) -> None:
    created = store.mpu("create").json()
    ids = {"key": created["key"].replace("ü", "%C3%BC"), "upload_id": created["uploadId"]}
    listed = [
        {
            "partNumber": number,
            "etag": store.mpu("upload", b"tiny", part_number=str(number), **ids).json()["etag"],
        }
        for number in (1, 2)
    ]
    refused = store.mpu("complete", json.dumps(listed), **ids)
    assert (refused.status_code, refused.json()["error"]["code"]) == (400, "bad_request")
    assert store.mpu("complete", json.dumps(listed[:1]), **ids).status_code == 200


def test_an_upload_can_be_watched_while_it_is_under_way(hosted: Hosted, store: Store) -> None:
    def body() -> Iterator[bytes]:
        yield b"\0" * MIB
        progress = hosted.wait("blob.put.progress", job="film")
        assert progress["data"] == {"pathname": "film.mp4", "bytes": MIB, "partNumber": None}
        yield b"\0" * MIB

    assert store.put("film.mp4", body()).status_code == 200
    assert hosted.wait("blob.put", job="film")["data"]["size"] == 2 * MIB


def test_an_upload_broken_off_leaves_nothing_behind(hosted: Hosted, store: Store) -> None:
    class Broken(Exception):
        pass

    def body() -> Iterator[bytes]:
        yield b"\0" * MIB
        hosted.wait("blob.put.progress")
        raise Broken

    with pytest.raises(Broken):
        store.put("film.mp4", body())
    assert store.put("other.mp4").status_code == 200
    hosted.stop()
    assert len(list((hosted.state / "blobs").iterdir())) == 1


def test_a_stored_film_can_be_viewed_in_ranges(hosted: Hosted, store: Store) -> None:
    store.put("a/b.mp4")
    url, headers = f"{hosted.url}/blob-files/a/b.mp4", {"Range": "bytes=4-9"}
    answer = requests.get(url, headers=headers, timeout=10)
    assert (answer.status_code, answer.content) == (206, FILM[4:10])
    assert answer.headers["Content-Type"] == "video/mp4"
