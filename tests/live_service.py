"""A real service on a real port over a real PostgreSQL, for tests to talk to."""

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import uvicorn
from fastapi import FastAPI
from sqlalchemy import text

from app.api.auth import Role, Viewer
from app.api.deps import Service, Tx
from app.api.routing import v1_router
from app.serve import server_config
from app.settings import Settings
from app.storage import db, tokens
from app.storage.tables import metadata

LLAMA = {"id": "meta-llama/Llama-3.1-8B"}
PLAN: dict[str, Any] = {"name": "first", "model": LLAMA, "hardware": {"gpu": "h100-sxm-80gb"}}
GPU: dict[str, Any] = {
    "name": "GeForce RTX 3080 with 20 GB",
    "nvml_names": ["NVIDIA GeForce RTX 3080"],
    "architecture": "Ampere GA10x",
    "compute_capability": "8.6",
    "memory_bytes": 19_456 * 2**20,
    "dense_flops_per_second": {"bf16": 59.5e12},
    "as_of": "2026-01-31",
    "source": "nvidia-smi on lab-3",
}
SHAPE: dict[str, Any] = {
    "name": "rack",
    "gpu": "h100-sxm-80gb",
    "gpus_per_node": 8,
    "as_of": "2026-01-31",
    "source": "purchase order",
}
INSTANCE: dict[str, Any] = {
    "provider": "aws",
    "instance_type": "p5.48xlarge",
    "gpu": "h100-sxm-80gb",
    "gpus": 8,
    "on_demand_per_hour_usd": 44.0,
    "as_of": "2026-01-31",
    "source": "agreement",
}
ENTRIES: dict[str, dict[str, Any]] = {"/v1/gpus": GPU, "/v1/node-shapes": SHAPE, "/v1/instances": INSTANCE}
"""A team's own entries, by where they are stored."""


@dataclass(frozen=True, slots=True)
class LiveService:
    """A service that answers at `url`."""

    url: str
    app: FastAPI

    @property
    def service(self) -> Service:
        service: Service = self.app.state.service
        return service

    def client(self, token: str | None = None) -> httpx.Client:
        headers = {} if token is None else {"Authorization": f"Bearer {token}"}
        return httpx.Client(base_url=self.url, headers=headers, timeout=20, trust_env=False)

    def empty(self) -> None:
        """Forget everything: so the service is in local mode again."""
        with self.service.engine.begin() as connection:
            for table in reversed(metadata.sorted_tables):
                connection.execute(table.delete())  # for a few rows far quicker than TRUNCATE
        self.service.needs_tokens = False

    def token(self, role: Role, **given: Any) -> str:
        """A new token of that role, straight into the database."""
        now = datetime.now(UTC)
        given = {"name": f"{role} {time.monotonic_ns()}", "expires_at": now + timedelta(days=1), **given}
        with db.transaction(self.service.sessions) as session:
            secret, _ = tokens.create(session, role=role.value, now=now, **given)
        return secret


@contextmanager
def running(app: FastAPI, settings: Settings) -> Iterator[LiveService]:
    """`app` behind uvicorn, in a thread of its own, on a free port."""
    # With the protocol named, as `tonnage serve` does: else asyncio does not set TCP_NODELAY, and answers wait 40 ms.
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.bind(("127.0.0.1", 0))
    listener.listen()
    server = uvicorn.Server(server_config(app, settings))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive(), "the service did not start"
            time.sleep(0.01)
        yield LiveService(f"http://127.0.0.1:{listener.getsockname()[1]}", app)
    finally:
        server.should_exit = True
        thread.join()


def add_test_routes(app: FastAPI) -> None:
    """What no real route does on purpose: crash, before and after touching the database."""
    router = v1_router("test")

    @router.get("/crash")
    def crash(_: Viewer) -> None:
        raise RuntimeError("SELECT secret FROM /etc/passwd")

    @router.get("/crash-at-commit")
    def crash_at_commit(_: Viewer, tx: Tx) -> dict[str, str]:
        tx.execute(text("SET CONSTRAINTS ALL DEFERRED"))
        tx.execute(text("CREATE TEMPORARY TABLE t (n int UNIQUE DEFERRABLE INITIALLY DEFERRED) ON COMMIT DROP"))
        tx.execute(text("INSERT INTO t VALUES (1), (1)"))
        return {"status": "stored"}

    app.include_router(router)
