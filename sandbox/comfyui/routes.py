"""The HTTP and websocket interface, each route also under /api."""

from __future__ import annotations

import asyncio
import logging
import sys
import time
import uuid
from typing import Any
from urllib.parse import urlsplit

from aiohttp import web
from aiohttp.typedefs import Handler
from engine import Engine
from files import Files
from jobs import describe_job, list_jobs
from run import NO_FAULT, Item, event_of
from script import Fault
from slots import Json, failure
from validation import ValidationResult, validate

log = logging.getLogger(__name__)

MIB = 1024 * 1024
CLOSE_TIMEOUT_S = 1.0
RAM_TOTAL, RAM_FREE = 67_240_000_000, 51_870_000_000  # bytes
PACKAGES = ("comfyui-frontend-package", "comfyui-workflow-templates", "comfyui-embedded-docs")


def make_app(engine: Engine) -> web.Application:
    app = web.Application(
        client_max_size=int(engine.state.options.max_upload_size * MIB),
        middlewares=[] if engine.state.options.enable_cors_header else [refuse_foreign_origin],
    )
    routes, files = Routes(engine), Files(engine.state.folders, engine.script)
    for prefix in ("", "/api"):
        app.add_routes([*routes.table(prefix), *files.table(prefix)])
    app.add_routes(routes.jobs_table())
    return app


@web.middleware
async def refuse_foreign_origin(request: web.Request, handler: Handler) -> web.StreamResponse:
    origin = request.headers.get("Origin")
    foreign = origin is not None and urlsplit(origin).netloc != request.host
    if foreign or request.headers.get("Sec-Fetch-Site") == "cross-site":
        return web.Response(status=403)
    return await handler(request)


class Routes:
    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.hub = engine.hub
        self.folders = engine.state.folders
        self.numbered = 0

    def table(self, prefix: str) -> list[web.RouteDef]:
        return [
            web.get(f"{prefix}/ws", self.open_websocket),
            web.get(f"{prefix}/system_stats", self.tell_system_stats),
            web.get(f"{prefix}/object_info", self.tell_object_info),
            web.get(f"{prefix}/object_info/{{name}}", self.tell_object_info),
            web.get(f"{prefix}/prompt", self.tell_status),
            web.post(f"{prefix}/prompt", self.take_prompt),
            web.get(f"{prefix}/queue", self.tell_queue),
            web.post(f"{prefix}/queue", self.change_queue),
            web.get(f"{prefix}/history", self.tell_history),
            web.get(f"{prefix}/history/{{prompt_id}}", self.tell_history),
            web.post(f"{prefix}/history", self.change_history),
            web.post(f"{prefix}/interrupt", self.interrupt),
            web.post(f"{prefix}/free", self.free),
        ]

    def jobs_table(self) -> list[web.RouteDef]:
        table = [
            web.get("/api/jobs", self.tell_jobs),
            web.get("/api/jobs/{prompt_id}", self.tell_job),
        ]
        if self.engine.script.version != "0.21":
            table += [
                web.post("/api/jobs/cancel", self.cancel_jobs),
                web.post("/api/jobs/{prompt_id}/cancel", self.cancel_job),
            ]
        return table

    # The websocket.

    async def open_websocket(self, request: web.Request) -> web.StreamResponse:
        if self.hub.refusing:
            return web.Response(status=503)
        ws = web.WebSocketResponse(timeout=CLOSE_TIMEOUT_S)
        await ws.prepare(request)
        client_id = request.query.get("clientId") or uuid.uuid4().hex
        self.hub.sockets[client_id] = ws
        self.hub.send("status", {"status": self.engine.status(), "sid": client_id}, client_id)
        if self.engine.client_id == client_id and self.engine.state.last_node is not None:
            self.hub.send("executing", {"node": self.engine.state.last_node}, client_id)
        try:
            async for message in ws:
                log.debug("websocket %s says %r", client_id, message.data)
        finally:
            # As in the real server, the end of a replaced socket also cuts off its successor.
            self.hub.sockets.pop(client_id, None)
        return ws

    # What the server is and knows.

    async def tell_system_stats(self, request: web.Request) -> web.Response:
        return web.json_response({"system": self._system(), "devices": [self._device()]})

    def _system(self) -> Json:
        version = self.engine.script.version
        system: Json = {
            "os": sys.platform,
            "ram_total": RAM_TOTAL,
            "ram_free": RAM_FREE,
            "comfyui_version": f"{version}.0",
            "required_frontend_version": "1.45.20",
            "installed_templates_version": None,
            "required_templates_version": "0.11.1",
            "python_version": sys.version.replace("\n", ""),
            "pytorch_version": "2.11.0+cu130",
            "embedded_python": False,
            "argv": sys.argv,
        }
        if version != "0.21":
            system["comfy_package_versions"] = [
                {"name": name, "installed": None, "required": "1.0.0"} for name in PACKAGES
            ]
            system["deploy_environment"] = "local-git"
        return system

    def _device(self) -> Json:
        script = self.engine.script
        free = self.engine.state.vram_free()
        return {
            "name": f"cuda:0 {script.gpu_name} : cudaMallocAsync",
            "type": "cuda",
            "index": 0,
            "vram_total": script.vram_total,
            "vram_free": free,
            "torch_vram_total": script.vram_total - free,
            "torch_vram_free": 0,
        }

    async def tell_object_info(self, request: web.Request) -> web.Response:
        schemas = self.engine.state.schemas()
        name = request.match_info.get("name")
        if name is not None:
            schemas = {name: schemas[name]} if name in schemas else {}
        return web.json_response(schemas)

    async def tell_status(self, request: web.Request) -> web.Response:
        return web.json_response(self.engine.status())

    # Prompts.

    async def take_prompt(self, request: web.Request) -> web.Response:
        log.info("got prompt")
        body: Json = await request.json()
        prompt_id = body.get("prompt_id", str(uuid.uuid4()))
        if self.engine.script.version != "0.21" and not _is_uuid(prompt_id):
            return _refusal(INVALID_PROMPT_ID)
        if "prompt" not in body:
            return _refusal(failure("no_prompt", "No prompt provided", "No prompt provided"))
        state = self.engine.state
        result = validate(
            body["prompt"], state.schemas(), image_exists=self.folders.has_input, packs=state.packs
        )
        if result.error is not None:
            log.warning("invalid prompt: %s", result.error)
            return _refusal(result.error, result.node_errors)
        fault = await asyncio.to_thread(
            self.engine.script.report,
            event_of(body["prompt"]),
            promptId=str(prompt_id),
            prompt=body["prompt"],
        )
        return self._accept(body, str(prompt_id), result, fault or NO_FAULT)

    def _accept(
        self, body: Json, prompt_id: str, result: ValidationResult, fault: Fault
    ) -> web.Response:
        if fault.kind == "reject":
            refusal = {"error": failure("invalid_prompt", "Prompt refused"), "node_errors": {}}
            given = fault.get("body", refusal)
            return web.json_response(given, status=fault.get("status", 400))
        node_errors = result.node_errors
        if fault.kind == "node_errors":
            node_errors = fault.get("node_errors", _made_up_node_errors(result))
        number = self._number(body)
        extra_data = dict(body.get("extra_data", {}))
        if "client_id" in body:
            extra_data["client_id"] = body["client_id"]
        extra_data["create_time"] = int(time.time() * 1000)
        self.engine.submit(
            Item(number, prompt_id, result.prompt, extra_data, result.outputs, fault)
        )
        return web.json_response(
            {"prompt_id": prompt_id, "number": number, "node_errors": node_errors}
        )

    def _number(self, body: Json) -> float:
        if "number" in body:
            return float(body["number"])
        number = -self.numbered if body.get("front") else self.numbered
        self.numbered += 1
        return number

    async def tell_queue(self, request: web.Request) -> web.Response:
        running = self.engine.running
        pending = sorted(self.engine.pending, key=lambda item: item.number)
        return web.json_response(
            {
                "queue_running": [running.listed()] if running else [],
                "queue_pending": [item.listed() for item in pending],
            }
        )

    async def change_queue(self, request: web.Request) -> web.Response:
        body = await request.json()
        if body.get("clear"):
            self.engine.clear()
        for prompt_id in body.get("delete", []):
            self.engine.delete(prompt_id)
        return web.Response()

    async def tell_history(self, request: web.Request) -> web.Response:
        history = self.engine.history
        if "prompt_id" in request.match_info:
            prompt_id = request.match_info["prompt_id"]
            return web.json_response(
                {prompt_id: history[prompt_id]} if prompt_id in history else {}
            )
        wanted = int(request.query.get("max_items", len(history)))
        newest = list(history)[max(0, len(history) - wanted) :]
        return web.json_response({prompt_id: history[prompt_id] for prompt_id in newest})

    async def change_history(self, request: web.Request) -> web.Response:
        body = await request.json()
        if body.get("clear"):
            self.engine.history.clear()
        for prompt_id in body.get("delete", []):
            self.engine.history.pop(prompt_id, None)
        return web.Response()

    async def interrupt(self, request: web.Request) -> web.Response:
        body = await request.json() if await request.text() else {}
        prompt_id = body.get("prompt_id")
        heard = self.engine.interrupt(prompt_id)
        await self._report("interrupt", promptId=prompt_id, heard=heard)
        return web.Response()

    async def free(self, request: web.Request) -> web.Response:
        body = await request.json()
        self.engine.ask_to_free(
            unload_models=body.get("unload_models", False),
            free_memory=body.get("free_memory", False),
        )
        return web.Response()

    # The newer way to ask about prompts.

    async def tell_jobs(self, request: web.Request) -> web.Response:
        return web.json_response(list_jobs(self.engine, request.query))

    async def tell_job(self, request: web.Request) -> web.Response:
        job = describe_job(self.engine, request.match_info["prompt_id"])
        if job is None:
            return web.json_response({"error": "Job not found"}, status=404)
        return web.json_response(job)

    async def cancel_job(self, request: web.Request) -> web.Response:
        return web.json_response({"cancelled": await self._cancel(request.match_info["prompt_id"])})

    async def cancel_jobs(self, request: web.Request) -> web.Response:
        body = await request.json()
        cancelled = [await self._cancel(prompt_id) for prompt_id in body.get("job_ids", [])]
        return web.json_response({"cancelled": any(cancelled)})

    async def _cancel(self, prompt_id: str) -> bool:
        cancelled = self.engine.delete(prompt_id) or self.engine.interrupt(prompt_id)
        await self._report("interrupt", promptId=prompt_id, heard=cancelled)
        return cancelled

    async def _report(self, event: str, **facts: Any) -> None:
        await asyncio.to_thread(self.engine.script.report, event, **facts)


INVALID_PROMPT_ID = failure(
    "invalid_prompt_id",
    "prompt_id must be a valid UUID",
    "prompt_id must be a UUID string in canonical lowercase hyphenated form; omit it to let the"
    " server generate one",
)


def _refusal(error: Json, node_errors: Json | None = None) -> web.Response:
    return web.json_response({"error": error, "node_errors": node_errors or {}}, status=400)


def _is_uuid(value: Any) -> bool:
    try:
        return isinstance(value, str) and str(uuid.UUID(value)) == value
    except ValueError:
        return False


def _made_up_node_errors(result: ValidationResult) -> Json:
    """As if one of several outputs had been dropped."""
    output = result.outputs[0]
    error = failure("required_input_missing", "Required input is missing", "images")
    class_type = result.prompt[output]["class_type"]
    report = {"errors": [error], "dependent_outputs": [output], "class_type": class_type}
    return {output: report}
