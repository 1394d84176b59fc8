"""The database goes away and comes back; the process stays."""

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from live_service import PLAN, LiveService, running
from sqlalchemy import text

from app.api.problems import MEDIA_TYPE
from app.main import create_app
from app.settings import Settings, SettingsError
from app.storage.embedded import EmbeddedPostgres
from app.storage.migration import migrate

EVERYTHING = ("/readyz", "/v1/plans", "/v1/nodes", "/v1/gpus")


@pytest.fixture
def postgres() -> Iterator[EmbeddedPostgres]:
    data_dir = Path(tempfile.mkdtemp(prefix="tonnage-"))
    server = EmbeddedPostgres(data_dir, options={"fsync": "off"})
    server.start()
    yield server
    server.stop()
    shutil.rmtree(data_dir)


def test_while_the_database_is_away_answers_say_so_and_then_all_is_well_again(postgres: EmbeddedPostgres) -> None:
    migrate(postgres.url)
    settings = Settings.from_environment({}, database_url=postgres.url, database_wait_seconds=1)
    with running(create_app(settings), settings) as live, live.client() as client:
        path = client.post("/v1/plans", json=PLAN).headers["Location"]
        assert client.get("/readyz").json() == {"status": "ready"}
        postgres.stop()
        for away in EVERYTHING:
            answer = client.get(away)
            assert (answer.status_code, answer.headers["Content-Type"]) == (503, MEDIA_TYPE)
            assert answer.headers["Retry-After"] == "5"
            assert answer.json()["type"] == "/problems/unavailable"
            assert "socket" not in answer.text
        assert client.post("/v1/plans", json=PLAN).status_code == 503
        for up in ("/healthz", "/metrics", "/docs", "/problems/unavailable"):
            assert client.get(up).status_code == 200
        postgres.start()
        for back in (*EVERYTHING, path):
            assert client.get(back).status_code == 200
        assert len(client.get("/v1/plans").json()["items"]) == 1


def test_a_service_starts_without_its_database_and_waits_for_it() -> None:
    settings = Settings.from_environment(
        {}, database_url="postgresql://nobody@127.0.0.1:1/none", database_wait_seconds=1
    )
    with running(create_app(settings), settings) as live, live.client() as client:
        assert client.get("/healthz").status_code == 200
        assert client.get("/readyz").status_code == 503


def test_a_schema_that_is_not_this_version_s_is_not_ready(empty_database: str) -> None:
    settings = Settings.from_environment({}, database_url=empty_database)
    with running(create_app(settings), settings) as live, live.client() as client:
        answer = client.get("/readyz")
        assert answer.status_code == 503
        assert "run `tonnage migrate`" in answer.json()["detail"]
        migrate(empty_database)
        assert client.get("/readyz").status_code == 200
        live.service.engine.dispose()


def test_a_service_about_to_stop_is_not_ready_and_still_answers(live: LiveService) -> None:
    live.service.is_draining = True
    try:
        with live.client() as client:
            answer = client.get("/readyz")
            assert answer.status_code == 503
            assert "about to stop" in answer.json()["detail"]
            assert client.get("/v1/plans").status_code == 200
    finally:
        live.service.is_draining = False


def test_a_statement_that_takes_too_long_is_given_up(fresh_database: str) -> None:
    settings = Settings.from_environment({}, database_url=fresh_database, database_statement_seconds=0.2)
    with running(create_app(settings), settings) as live, live.client() as client:
        with live.service.engine.connect() as connection, connection.begin():
            connection.execute(text("LOCK TABLE plans IN ACCESS EXCLUSIVE MODE"))
            answer = client.post("/v1/plans", json=PLAN)
        assert answer.status_code == 503
        assert client.get("/v1/plans").json()["items"] == []


def test_without_a_database_url_there_is_no_application() -> None:
    with pytest.raises(SettingsError, match="TONNAGE_DATABASE_URL is needed"):
        create_app(Settings.from_environment({}))
