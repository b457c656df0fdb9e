"""A secret that was changed on the hosted side, and then in .env, is taken without a restart."""

from __future__ import annotations

import os
import sys

import pytest

from sandbox.launch import Running
from tests.conftest import Box, install
from tests.ground.test_logs import leaks

POLL = "GET /api/videogen/pending"
NEW = "the/new+secret-of-today"


class Tenant:
    """A worker in a folder of its own, whose secret is in its .env alone."""

    def __init__(self, box: Box, name: str = "VIDEOGEN_WORKER_SECRET") -> None:
        self.box, self.hosted, self.name = box, box.hosted, name
        script = install(box.folder)
        self.env_file = script.with_name(".env")
        self.write(box.settings[name])
        own = {k: v for k, v in box.environ().items() if k != name}
        command = [sys.executable, "-u", str(script)]
        self.worker = Running(command, own, box.folder / "tenant.log")
        box.running.append(self.worker)

    def write(self, secret: str) -> None:
        part = self.env_file.with_name("half-saved")
        part.write_text(f"{self.name}={secret}\n")
        os.replace(part, self.env_file)

    def change_hosted(self, secret: str) -> int:
        """The hosted side takes another secret from here on."""
        self.hosted.stop()
        self.hosted.secret = secret
        self.hosted.start()
        return self.hosted.now()


@pytest.fixture
def tenant(box: Box) -> Tenant:
    tenant = Tenant(box)
    box.hosted.wait("heartbeat")
    return tenant


def test_a_new_secret_in_env_is_taken_by_polls_and_heartbeats_when_the_old_one_is_refused(
    tenant: Tenant,
) -> None:
    mark = tenant.change_hosted(NEW)
    for _ in range(2):
        tenant.hosted.wait("pending.rejected", after=tenant.hosted.now())
    tenant.write(NEW)
    # A second poll comes when the worker has heard what the first one brought.
    taken = tenant.hosted.wait("pending", after=mark)
    tenant.hosted.wait("pending", after=taken["seq"])
    tenant.hosted.wait("heartbeat", after=mark)
    assert tenant.worker.log.count("secret_renewed") == 1
    assert tenant.worker.log.count(" degraded ") == tenant.worker.log.count(" recovered") == 1


def test_a_secret_that_was_changed_on_both_sides_costs_no_call(tenant: Tenant) -> None:
    tenant.write(NEW)
    mark = tenant.change_hosted(NEW)
    tenant.hosted.wait("pending", after=mark)
    assert " degraded " not in tenant.worker.log


def test_the_old_and_the_new_secret_are_both_blotted_out_of_the_log(tenant: Tenant) -> None:
    old = tenant.hosted.secret
    tenant.write(NEW)
    mark = tenant.change_hosted(NEW)
    tenant.hosted.wait("pending", after=mark)
    tenant.hosted.fault(POLL, status=500, body=f"you sent {NEW}, before that {old}")
    mark = tenant.hosted.wait("fault", after=mark)["seq"]
    tenant.hosted.wait("pending", after=mark)
    assert "you sent ***, before that ***" in tenant.worker.log
    assert not leaks(tenant.worker.log, NEW)
    assert not leaks(tenant.worker.log, old)


@pytest.mark.parametrize("slip", ["", "short", "with a space in it"])
def test_a_slip_in_the_new_secret_is_told_and_does_not_end_the_worker(
    tenant: Tenant, slip: str
) -> None:
    mark = tenant.change_hosted(NEW)
    tenant.write(slip)
    tenant.hosted.wait("pending.rejected", after=mark)
    tenant.hosted.wait("pending.rejected", after=tenant.hosted.now())
    tenant.write(NEW)
    tenant.hosted.wait("pending", after=mark)
    assert "secret_unreadable VIDEOGEN_WORKER_SECRET" in tenant.worker.log
    assert tenant.worker.process.poll() is None


def test_a_secret_that_is_wrong_at_the_first_call_is_looked_up_again_before_the_worker_ends(
    box: Box,
) -> None:
    box.hosted.fault("POST */register", times=-1, status=503, body={"error": "busy"})
    secret, box.settings["VIDEOGEN_WORKER_SECRET"] = box.hosted.secret, "an-old-secret"
    tenant = Tenant(box)
    box.hosted.wait("fault")
    tenant.write(secret)
    box.hosted.clear_faults()
    box.hosted.wait("pending")
    assert "secret_renewed" in tenant.worker.log


def test_a_new_token_of_the_store_is_taken_when_the_old_one_is_refused(box: Box) -> None:
    right = box.settings["BLOB_READ_WRITE_TOKEN"]
    box.settings["BLOB_READ_WRITE_TOKEN"] = "vercel_blob_rw_Sandbox0Store1234_revoked"
    tenant = Tenant(box, "BLOB_READ_WRITE_TOKEN")
    job = box.add_job()
    box.hosted.wait("heartbeat", where=lambda one: one["data"]["status"] == "degraded", timeout=60)
    tenant.write(right)
    box.hosted.wait("complete", job, timeout=60)
    assert tenant.worker.log.count("secret_renewed") == 1
    assert tenant.worker.log.count("render_done") == 1
