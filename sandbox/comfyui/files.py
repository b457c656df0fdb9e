"""Uploads of images, and the files that /view serves."""

from __future__ import annotations

import asyncio
import hashlib
import os
from pathlib import Path

from aiohttp import web
from options import Folders
from script import Script


class Files:
    def __init__(self, folders: Folders, script: Script) -> None:
        self.folders = folders
        self.script = script

    def table(self, prefix: str) -> list[web.RouteDef]:
        return [
            web.post(f"{prefix}/upload/image", self.upload_image),
            web.get(f"{prefix}/view", self.view),
        ]

    async def upload_image(self, request: web.Request) -> web.Response:
        """An existing name with other bytes gets a number, unless `overwrite` says otherwise."""
        form = await request.post()
        image = form.get("image")
        kind, subfolder = str(form.get("type", "input")), str(form.get("subfolder", ""))
        root = self.folders.by_type(kind)
        if image is None or root is None:
            return web.Response(status=400)
        if not isinstance(image, web.FileField):
            return web.Response(status=500)  # an empty file name makes it a plain text field
        folder = Path(os.path.abspath(root / subfolder))
        path = Path(os.path.abspath(folder / image.filename))
        if not folder.is_relative_to(root) or not path.is_relative_to(root):
            return web.Response(status=400)
        folder.mkdir(parents=True, exist_ok=True)
        content = image.file.read()
        if form.get("overwrite") not in ("true", "1"):
            path = _free_name(path, content)
        if not path.parent.is_dir():
            return web.Response(status=500)  # "a/b.png": nobody makes the folder a
        path.write_bytes(content)
        await asyncio.to_thread(self.script.report, "upload", name=path.name)
        return web.json_response({"name": path.name, "subfolder": subfolder, "type": kind})

    async def view(self, request: web.Request) -> web.StreamResponse:
        name = request.query.get("filename", "")
        root = self.folders.by_type(request.query.get("type", "output"))
        if not name:
            return web.Response(status=404)
        if name.startswith("/") or ".." in name or root is None:
            return web.Response(status=400)
        folder = Path(os.path.abspath(root / request.query.get("subfolder", "")))
        if not folder.is_relative_to(root):
            return web.Response(status=403)
        path = folder / Path(name).name
        if not path.is_file():
            return web.Response(status=404)
        disposition = f'filename="{path.name}"'
        return web.FileResponse(path, headers={"Content-Disposition": disposition})


def _free_name(path: Path, content: bytes) -> Path:
    """`path`, or "name (1).png" and on, until the name is free or holds these very bytes."""
    candidate, n = path, 0
    digest = hashlib.sha256(content).digest()
    while candidate.exists() and hashlib.sha256(candidate.read_bytes()).digest() != digest:
        n += 1
        candidate = path.with_name(f"{path.stem} ({n}){path.suffix}")
    return candidate
