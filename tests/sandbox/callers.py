"""The hosted side called by hand: a worker's calls, and a Blob client without manners."""

from __future__ import annotations

from typing import Any

import requests

from sandbox.client import Hosted

FILM = b"not really a film, but bytes all the same"


class Caller:
    """A worker's side of the wire, one method a call, each answering the raw response."""

    def __init__(self, hosted: Hosted, worker: str = "worker-1") -> None:
        self.hosted = hosted
        self.worker = worker

    def call(self, method: str, path: str, body: Any = None, **kw: Any) -> requests.Response:
        headers = {"x-videogen-secret": self.hosted.secret}
        url = f"{self.hosted.url}/api/videogen/{path}"
        return requests.request(method, url, json=body, headers=headers, timeout=10, **kw)

    def pending(self) -> Any:
        answer = self.call("GET", "pending", params={"workerId": self.worker})
        assert answer.status_code == 200, answer.text
        return answer.json()

    def claim(self, job: str) -> requests.Response:
        return self.call("PATCH", f"{job}/claim", {"workerId": self.worker})

    def heartbeat(self, **changes: Any) -> requests.Response:
        return self.call(
            "POST", "heartbeat", {"workerId": self.worker, "status": "busy", **changes}
        )

    def complete(self, job: str, **changes: Any) -> requests.Response:
        return self.call("PATCH", f"{job}/complete", {**self.outcome(job), **changes})

    def fail(self, job: str, code: str = "comfyui_failed", retryable: bool = False) -> int:
        error = {"code": code, "message": "It broke.", "retryable": retryable}
        body = {"workerId": self.worker, "error": error}
        return self.call("PATCH", f"{job}/fail", body).status_code

    def outcome(self, job: str) -> dict[str, Any]:
        return {
            "workerId": self.worker,
            "outputUrl": "https://sandbox0store1234.public.blob.vercel-storage.com"
            f"/spatial-story/output/{job}.mp4",
            "durationSec": 5.0,
            "frames": 120,
            "fps": 24,
            "width": 1920,
            "height": 1080,
            "sizeBytes": len(FILM),
            "watermarked": False,
            "renderSec": 1.5,
            "clips": [{"seed": 7, "renderSec": 1.5, "attempts": 1}],
        }


class Store:
    """The Blob API by hand, without any client's manners."""

    def __init__(self, hosted: Hosted) -> None:
        self.hosted = hosted

    def send(self, method: str, path: str = "", **kw: Any) -> requests.Response:
        headers = {
            "authorization": f"Bearer {self.hosted.blob_token}",
            "x-vercel-blob-access": "public",
            **kw.pop("headers", {}),
        }
        url = self.hosted.blob_api_url + path
        return requests.request(method, url, headers=headers, timeout=10, **kw)

    def put(self, pathname: str, body: Any = FILM, **headers: str) -> requests.Response:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return self.send("PUT", params={"pathname": pathname}, data=body, headers=named)

    def head(self, url: str) -> requests.Response:
        return self.send("GET", params={"url": url})

    def mpu(self, action: str, body: Any = b"", **headers: str) -> requests.Response:
        named = {f"x-mpu-{name.replace('_', '-')}": value for name, value in headers.items()}
        given = {"x-mpu-action": action, **named}
        return self.send("POST", "/mpu", params={"pathname": "m ü.mp4"}, data=body, headers=given)
