"""/api/jobs: unlike the history it knows waiting jobs, and tells cancelled from failed."""

from __future__ import annotations

import json
from collections.abc import Mapping

from engine import Engine
from run import Item
from slots import Json


def list_jobs(engine: Engine, query: Mapping[str, str]) -> Json:
    everyone = [*engine.history, *(item.prompt_id for item in _unfinished(engine))]
    jobs = [job for prompt_id in everyone if (job := describe_job(engine, prompt_id))]
    wanted = query.get("status", "").split(",") if query.get("status") else None
    chosen = [job for job in jobs if wanted is None or job["status"] in wanted]
    offset = int(query.get("offset", 0))
    limit = int(query.get("limit", len(chosen)))
    page = {
        "offset": offset,
        "limit": limit,
        "total": len(chosen),
        "has_more": offset + limit < len(chosen),
    }
    return {"jobs": chosen[offset : offset + limit], "pagination": page}


def describe_job(engine: Engine, prompt_id: str) -> Json | None:
    for item in _unfinished(engine):
        if item.prompt_id == prompt_id:
            return _waiting(item, "in_progress" if item is engine.running else "pending")
    entry = engine.history.get(prompt_id)
    return _finished(prompt_id, entry) if entry else None


def _unfinished(engine: Engine) -> list[Item]:
    running = [engine.running] if engine.running else []
    return [*running, *engine.pending]


def _waiting(item: Item, status: str) -> Json:
    return {
        "id": item.prompt_id,
        "status": status,
        "priority": item.number,
        "create_time": item.extra_data["create_time"],
        "outputs_count": 0,
        "workflow": {"prompt": item.prompt, "extra_data": item.extra_data},
    }


def _finished(prompt_id: str, entry: Json) -> Json:
    number, _, prompt, extra_data, _ = entry["prompt"]
    messages = dict(entry["status"]["messages"])
    last, data = entry["status"]["messages"][-1]
    statuses = {"execution_success": "completed", "execution_interrupted": "cancelled"}
    job = {
        "id": prompt_id,
        "status": statuses.get(last, "failed"),
        "priority": number,
        "create_time": extra_data["create_time"],
        "execution_start_time": messages["execution_start"]["timestamp"],
        "execution_end_time": data["timestamp"],
        "outputs_count": len(entry["outputs"]),
        "outputs": entry["outputs"],
        "execution_status": json.dumps(entry["status"]),
        "workflow": {"prompt": prompt, "extra_data": extra_data},
    }
    if last == "execution_error":
        job["execution_error"] = json.dumps(data)
    return job
