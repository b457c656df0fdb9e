"""The look-alike takes and serves files as the real ComfyUI does."""

from __future__ import annotations

from pathlib import Path

import requests

from tests.pictures import picture
from tests.sandbox.conftest import Start
from tests.sandbox.lookalike import (
    PATIENCE_S,
    SIZE,
    Lookalike,
    flf2v,
)


def test_an_upload_never_overwrites_other_bytes_unasked(comfyui: Lookalike) -> None:
    one, other = picture(SIZE, 5), picture(SIZE, 6)
    names = [
        comfyui.upload("up.png", one).json(),
        comfyui.upload("up.png", one).json(),
        comfyui.upload("up.png", other).json(),
        comfyui.upload("up.png", other).json(),
        comfyui.upload("up.png", other, overwrite="true", subfolder="job").json(),
    ]
    assert [answer["name"] for answer in names] == [
        "up.png", "up.png", "up (1).png", "up (1).png", "up.png",
    ]  # fmt: skip
    assert names[-1] == {"name": "up.png", "subfolder": "job", "type": "input"}
    assert (comfyui.folder / "input" / "job" / "up.png").read_bytes() == other


def test_an_upload_cannot_leave_its_folder(comfyui: Lookalike) -> None:
    assert comfyui.upload("../../x.png", b"x").status_code == 400
    assert comfyui.upload("x.png", b"x", subfolder="../..").status_code == 400
    assert comfyui.upload("a/b.png", b"x").status_code == 500
    assert comfyui.post("/upload/image", files={"picture": b"x"}).status_code == 400


def test_an_upload_above_the_limit_is_refused(start: Start) -> None:
    answer = start("--max-upload-size", "1").ready().upload("big.png", bytes(1_100_000))
    assert answer.status_code == 413
    assert answer.text == "Maximum request body size 1048576 exceeded."


def test_view_serves_files_and_parts_of_them(comfyui: Lookalike) -> None:
    video = comfyui.video(comfyui.run(flf2v(prefix="view/it"))[0])
    whole = Path(video["fullpath"]).read_bytes()
    path = f"/view?filename={video['filename']}&subfolder=view&type=output"
    answer = comfyui.get(path)
    assert (answer.content, answer.headers["Content-Type"]) == (whole, "video/mp4")
    part = comfyui.get(path, headers={"Range": "bytes=0-99"})
    assert (part.status_code, part.content) == (206, whole[:100])
    assert part.headers["Content-Range"] == f"bytes 0-99/{len(whole)}"
    assert comfyui.get(path, headers={"Range": f"bytes={len(whole)}-"}).status_code == 416
    head = requests.head(comfyui.url + path, timeout=PATIENCE_S)
    assert head.headers["Content-Length"] == str(len(whole))
    assert comfyui.get("/view?filename=nope.mp4").status_code == 404
    assert comfyui.get("/view?filename=../x").status_code == 400
    assert comfyui.get("/view?filename=x&subfolder=../..").status_code == 403
