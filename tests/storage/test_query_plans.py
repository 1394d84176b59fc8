"""No everyday query reads a whole table: the statements that the functions really send are explained over many rows."""

from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import Engine, event, text
from sqlalchemy.orm import Session

from app.storage import db, entries, idempotency, inventory, plans, tokens
from app.storage.inventory import Freshness
from app.storage.plans import PlanKey
from app.telemetry import GpuReading, Node, NodeReport, ReportBatch

NOW = datetime(2026, 1, 31, 12, tzinfo=UTC)
PLAN = UUID(int=4711)
MANY_ROWS = """
INSERT INTO tokens SELECT gen_random_uuid(), 'token ' || n, 'viewer', sha256(n::text::bytea), '', NULL, now()
  FROM generate_series(1, 5000) n;
INSERT INTO plans SELECT lpad(to_hex(n), 32, '0')::uuid, 'plan ' || n, NULL, jsonb_build_object('team', n % 500), 1,
  now() - n * interval '1 minute', 'ops', now() FROM generate_series(1, 20000) n;
INSERT INTO plan_revisions SELECT id, 1, '{}', '{}', '{}', '', now(), '' FROM plans;
INSERT INTO idempotency_keys SELECT 'ops', n::text, '', 201, '{}', '', now() - n * interval '1 second'
  FROM generate_series(1, 20000) n;
INSERT INTO nodes (name, agent_version, labels, demo, unidentified_gpus, boot_id, sequence, first_seen_at, sampled_at,
  received_at) SELECT 'n' || n, '0', '{}', false, '[]', 'b', 1000, now(), now(), now() FROM generate_series(1, 2000) n;
INSERT INTO gpus (uuid, node_id, gpu_index, name, present, reading, first_seen_at, sampled_at, received_at)
  SELECT 'G' || n, n / 8 + 1, n % 8, 'card', true, '{}', now(), now(), now() FROM generate_series(0, 15999) n;
INSERT INTO reports SELECT n % 2000 + 1, 'b', n / 2000, now(), now(), '{}' FROM generate_series(0, 199999) n;
INSERT INTO team_entries SELECT CASE WHEN n % 100 = 0 THEN 'gpu' ELSE 'instance' END, 'key' || n, 1,
  jsonb_build_object('gpu', 'b200'), now(), '', now(), '' FROM generate_series(1, 20000) n;
ANALYZE
"""


@pytest.fixture(scope="module")
def full(server: Any, migrated: str) -> Iterator[Engine]:
    name = server.create(template=migrated)
    engine = db.make_engine(server.url(name))
    with engine.begin() as connection:
        connection.execute(text(MANY_ROWS))
    yield engine
    engine.dispose()
    server.drop(name)


def report(number: int) -> NodeReport:
    cards = tuple(GpuReading(uuid=f"G{8 * (number - 1) + index}", index=index, name="card") for index in range(8))
    node = Node(name=f"n{number}", agent_version="0")
    return NodeReport(node=node, boot_id="b", sequence=2000, sampled_at=NOW, gpus=cards)


FRESHNESS = Freshness(now=NOW, stale_seconds=60, offline_seconds=300)
BATCH = ReportBatch(reports=tuple(report(number) for number in range(1, 11)))
CONTENT = plans.PlanContent(request={}, resolved={}, estimate={}, engine_version="0")
REVISION = {"name": "n", "description": None, "labels": {}, "content": CONTENT, "created_by": "ops", "now": NOW}

QUERIES: dict[str, Callable[[Session], object]] = {
    "find a token": lambda s: tokens.find(s, "tng_viewer_x", now=NOW),
    "touch a token": lambda s: tokens.touch(s, UUID(int=1), NOW),
    "read a plan": lambda s: plans.get(s, PLAN),
    "list plans": lambda s: plans.list_plans(s, limit=50),
    "list plans behind a cursor": lambda s: plans.list_plans(s, limit=50, after=PlanKey(NOW, PLAN)),
    "list plans with a label": lambda s: plans.list_plans(s, limit=50, labels={"team": "7"}),
    "revise a plan": lambda s: plans.new_revision(s, PLAN, expected_revision=1, **REVISION),  # type: ignore[arg-type]
    "list revisions": lambda s: plans.list_revisions(s, PLAN, limit=50),
    "claim a key": lambda s: idempotency.claim(s, scope="ops", key="7", request_sha256=b""),
    "drop old answers": lambda s: idempotency.drop_old(s, before=datetime.now(UTC) - timedelta(seconds=19_900)),
    "record reports": lambda s: inventory.record(s, BATCH, received_at=NOW + timedelta(days=9000)),
    "read a node": lambda s: inventory.get_node(s, 7, freshness=FRESHNESS),
    "read an entry": lambda s: entries.get(s, "gpu", "key100"),
    "change an entry": lambda s: entries.replace(
        s, "gpu", "key100", expected_revision=1, content={}, author="ops", now=NOW
    ),
    "list entries": lambda s: entries.list_entries(s, "gpu"),
    "find entries by what they name": lambda s: entries.naming(s, "gpu", "gpu", "b200"),
    "list nodes behind a cursor": lambda s: inventory.list_nodes(s, freshness=FRESHNESS, limit=50, after="n7"),
}


@pytest.mark.parametrize("query", QUERIES)
def test_no_query_reads_a_whole_table(full: Engine, query: str) -> None:
    sent: list[tuple[str, object]] = []

    def note(_connection: object, _cursor: object, statement: str, parameters: object, *_: object) -> None:
        sent.append((statement, parameters))

    with Session(full) as session:
        event.listen(full, "before_cursor_execute", note)
        QUERIES[query](session)
        event.remove(full, "before_cursor_execute", note)
        session.rollback()
        explained = [explain(session, statement, parameters) for statement, parameters in sent]
    assert sent
    for (statement, _), plan in zip(sent, explained, strict=True):
        assert "Seq Scan" not in plan, f"{statement}\n{plan}"


def explain(session: Session, statement: str, parameters: object) -> str:
    rows = session.connection().exec_driver_sql(f"EXPLAIN {statement}", parameters)  # type: ignore[arg-type]
    return "\n".join(row[0] for row in rows)


def test_a_query_that_does_is_noticed(full: Engine) -> None:
    with Session(full) as session:
        assert "Seq Scan" in explain(session, "SELECT * FROM plans WHERE name = 'x'", ())
