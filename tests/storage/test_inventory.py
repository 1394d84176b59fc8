"""Reports in, fleet out: once each, newest wins, in whatever order and company they come."""

import random
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import Engine, event, func, select
from sqlalchemy.orm import Session

from app.errors import NotFound
from app.storage import db, inventory
from app.storage.inventory import Freshness, GpuFilter, GpuKey, GpuState, NodeState, Recorded, UnidentifiedGpu
from app.storage.tables import reports
from app.telemetry import GpuMemory, GpuProcess, GpuReading, GpuUtilization, Node, NodeReport, ReportBatch

START = datetime(2026, 1, 31, 12, tzinfo=UTC)
SECOND = timedelta(seconds=1)
GIB = 2**30


def gpu(uuid: str | None, index: int = 0, free: int | None = 70 * GIB, **more: object) -> GpuReading:
    memory = None if free is None else GpuMemory(total_bytes=80 * GIB, used_bytes=80 * GIB - free, free_bytes=free)
    values = {"name": "NVIDIA H100 80GB HBM3", "memory": memory, **more}
    return GpuReading(uuid=uuid, index=index, **values)  # type: ignore[arg-type]  # a test says what it changes


def report(
    sequence: int, *gpus: GpuReading, node: str = "n1", boot: str = "b1", at: datetime | None = None, **more: object
) -> NodeReport:
    of_node = {name: more.pop(name) for name in ("pool", "labels", "demo") if name in more}
    return NodeReport(
        node=Node(name=node, agent_version="0.1.0", **of_node),  # type: ignore[arg-type]  # as above
        boot_id=boot,
        sequence=sequence,
        sampled_at=at or START + sequence * SECOND,
        gpus=gpus,
        **more,  # type: ignore[arg-type]  # as above
    )


def record(session: Session, *sent: NodeReport, at: datetime | None = None) -> tuple[int, int]:
    recorded = inventory.record(session, ReportBatch(reports=sent), received_at=at or START + timedelta(hours=1))
    return recorded.accepted, recorded.duplicates


def fresh(now: datetime = START + timedelta(hours=1)) -> Freshness:
    return Freshness(now=now, stale_seconds=60, offline_seconds=300)


def nodes(session: Session, **wanted: object) -> dict[str, NodeState]:
    page = inventory.list_nodes(session, freshness=fresh(), limit=1000, **wanted)  # type: ignore[arg-type]  # as above
    return {state.node.name: state for state in page.items}


def gpus(session: Session, **wanted: object) -> dict[str | None, GpuState]:
    asked = GpuFilter(**wanted)  # type: ignore[arg-type]  # as above
    page = inventory.list_gpus(session, asked, freshness=fresh(), limit=1000)
    return {state.reading.uuid: state for state in page.items}


def history(session: Session) -> list[tuple[str, int]]:
    rows = session.execute(select(reports.c.boot_id, reports.c.sequence).order_by(*reports.primary_key.columns))
    return [(row[0], row[1]) for row in rows]


FULL = GpuReading(
    uuid="GPU-1",
    index=3,
    name="NVIDIA H100 80GB HBM3",
    memory=GpuMemory(total_bytes=80 * GIB, used_bytes=9 * GIB, free_bytes=70 * GIB, reserved_bytes=GIB),
    utilization=GpuUtilization(gpu_percent=97, memory_percent=41),
    power_watts=612.25,
    power_limit_watts=700.0,
    temperature_celsius=61,
    pci_bus_id="00000000:19:00.0",
    mig_mode="disabled",
    processes=(GpuProcess(pid=7, used_memory_bytes=9 * GIB, name="pÿthon"), GpuProcess(pid=8)),
)


def test_everything_that_was_reported_comes_back(session: Session) -> None:
    node = Node(
        name="n1",
        agent_version="0.1.0",
        driver_version="590.48.01",
        cuda_version="13.1",
        pool="research",
        labels={"rack": "b4"},
        demo=True,
    )
    sent = NodeReport(node=node, boot_id="b1", sequence=7, sampled_at=START, gpus=(FULL,))
    assert record(session, sent, at=START + SECOND) == (1, 0)
    [state] = inventory.list_nodes(session, freshness=fresh(START + 2 * SECOND), limit=10).items
    assert state == NodeState(
        id=state.id,
        node=node,
        status="online",
        error=None,
        gpus=1,
        unidentified_gpus=(),
        boot_id="b1",
        sequence=7,
        first_seen_at=START + SECOND,
        sampled_at=START,
        received_at=START + SECOND,
    )
    assert inventory.get_node(session, state.id, freshness=fresh(START + 2 * SECOND)) == state
    assert gpus(session)["GPU-1"] == GpuState(
        reading=FULL,
        present=True,
        node_id=state.id,
        node="n1",
        node_status="offline",  # by the hour at which `gpus` looks
        pool="research",
        demo=True,
        first_seen_at=START + SECOND,
        sampled_at=START,
        received_at=START + SECOND,
    )
    assert session.scalar(select(reports.c.payload["gpus"][0]["processes"][0]["name"].astext)) == "pÿthon"


def test_what_a_card_does_not_offer_is_unknown_and_not_zero(session: Session) -> None:
    bare = GpuReading(uuid="GPU-1", index=0, name="NVIDIA GB10")
    record(session, report(1, bare))
    assert gpus(session)["GPU-1"].reading == bare
    assert gpus(session, min_free_bytes=0) == {}


def test_a_report_is_stored_once_however_often_it_is_sent(session: Session) -> None:
    first = report(1, gpu("GPU-1"))
    assert record(session, first) == (1, 0)
    assert record(session, first) == (0, 1)
    assert record(session, first, report(2, gpu("GPU-1")), report(2, gpu("GPU-1"))) == (1, 2)
    assert history(session) == [("b1", 1), ("b1", 2)]


def test_the_same_number_after_a_restart_or_on_another_node_is_another_report(session: Session) -> None:
    assert record(session, report(1), report(1, boot="b2"), report(1, node="n2")) == (3, 0)


@pytest.mark.parametrize("apart", [False, True])
def test_the_newest_report_wins_in_whatever_order_they_come(session: Session, apart: bool) -> None:
    sent = [report(n, gpu("GPU-1", free=n * GIB), at=START) for n in range(1, 9)]
    random.Random(7).shuffle(sent)  # noqa: S311 an order, not a secret
    if apart:
        assert [record(session, one) for one in sent] == [(1, 0)] * 8
    else:
        assert record(session, *sent) == (8, 0)
    assert nodes(session)["n1"].sequence == 8
    memory = gpus(session)["GPU-1"].reading.memory
    assert memory is not None
    assert memory.free_bytes == 8 * GIB


def test_a_late_report_fills_the_history_and_changes_nothing_else(session: Session) -> None:
    record(session, report(5, gpu("GPU-1"), pool="new"), at=START + 10 * SECOND)
    before = nodes(session), gpus(session)
    assert record(session, report(4, gpu("GPU-1", free=1), gpu("GPU-2", 1), pool="old"), at=START + 99 * SECOND) == (
        1,
        0,
    )
    assert (nodes(session), gpus(session, include_absent=True)) == before
    assert history(session) == [("b1", 4), ("b1", 5)]


def test_a_restarted_node_begins_anew_and_a_report_from_before_the_restart_comes_late(session: Session) -> None:
    record(session, report(900, gpu("GPU-1", free=1)))
    record(session, report(1, gpu("GPU-1", free=2), boot="b2", at=START + timedelta(minutes=30)))
    record(session, report(901, gpu("GPU-1", free=3)))
    state = nodes(session)["n1"]
    assert (state.boot_id, state.sequence) == ("b2", 1)
    assert gpus(session)["GPU-1"].sampled_at == START + timedelta(minutes=30)


def test_a_clock_that_was_ahead_does_not_hold_a_node_in_the_past_after_it_is_set_right(session: Session) -> None:
    record(session, report(1, gpu("GPU-1"), at=START + timedelta(days=900)), at=START)
    record(session, report(1, gpu("GPU-1"), boot="b2", at=START + SECOND), at=START + 2 * SECOND)
    assert nodes(session)["n1"].boot_id == "b2"
    assert gpus(session)["GPU-1"].sampled_at == START + SECOND


def test_a_clock_that_is_behind_makes_no_node_offline(session: Session) -> None:
    record(session, report(1, at=START - timedelta(days=900)), at=START + timedelta(hours=1))
    assert nodes(session)["n1"].status == "online"


def test_a_gpu_that_is_no_longer_reported_is_absent_and_may_come_back(session: Session) -> None:
    record(session, report(1, gpu("GPU-1"), gpu("GPU-2", 1)))
    record(session, report(2, gpu("GPU-1")))
    assert set(gpus(session)) == {"GPU-1"}
    gone = gpus(session, include_absent=True)["GPU-2"]
    assert (gone.present, gone.sampled_at) == (False, START + SECOND)
    assert nodes(session)["n1"].gpus == 1
    record(session, report(3, gpu("GPU-2", 5)))
    assert {
        uuid: (state.present, state.reading.index) for uuid, state in gpus(session, include_absent=True).items()
    } == {
        "GPU-1": (False, 0),
        "GPU-2": (True, 5),
    }


def test_a_gpu_moved_to_another_node_follows_and_the_old_node_does_not_take_it_away_again(session: Session) -> None:
    record(session, report(1, gpu("GPU-1")), report(1, gpu("GPU-9"), node="n2"))
    record(session, report(5, gpu("GPU-9"), gpu("GPU-1", 1), node="n2"))
    record(session, report(6))  # the old node without it
    moved = gpus(session)["GPU-1"]
    assert (moved.node, moved.present, moved.reading.index, moved.first_seen_at) == ("n2", True, 1, moved.received_at)
    record(session, report(2, gpu("GPU-1")))  # late news of the old node
    assert gpus(session)["GPU-1"].node == "n2"


def test_a_gpu_moves_although_the_new_nodes_clock_is_behind(session: Session) -> None:
    record(session, report(1, gpu("GPU-1")))
    record(session, report(2))
    record(session, report(1, gpu("GPU-1"), node="n2", at=START - timedelta(days=1)))
    assert gpus(session)["GPU-1"].node == "n2"


def test_a_gpu_moves_within_one_batch_although_the_new_nodes_clock_is_behind(session: Session) -> None:
    record(session, report(1, gpu("GPU-1")))
    record(session, report(2), report(1, gpu("GPU-1"), node="n2", at=START - timedelta(days=1)))
    assert gpus(session)["GPU-1"].node == "n2"


def test_of_two_nodes_that_claim_one_gpu_in_one_batch_the_later_is_believed(session: Session) -> None:
    record(session, report(9, gpu("GPU-1"), node="n2"), report(1, gpu("GPU-1")), report(8, gpu("GPU-1"), node="n3"))
    assert gpus(session)["GPU-1"].node == "n2"


def test_gpus_swapped_between_two_nodes_in_one_batch(session: Session) -> None:
    record(session, report(1, gpu("GPU-1")), report(1, gpu("GPU-2"), node="n2"))
    record(session, report(2, gpu("GPU-2")), report(2, gpu("GPU-1"), node="n2"))
    assert {uuid: (state.node, state.present) for uuid, state in gpus(session).items()} == {
        "GPU-1": ("n2", True),
        "GPU-2": ("n1", True),
    }


def test_a_sick_gpu_keeps_its_name_and_says_what_ails_it(session: Session) -> None:
    record(session, report(1, gpu("GPU-1")))
    record(session, report(2, gpu("GPU-1", free=None, name=None, error="GPU is lost")))
    sick = gpus(session)["GPU-1"]
    assert (sick.present, sick.reading.name, sick.reading.memory) == (True, "NVIDIA H100 80GB HBM3", None)
    assert sick.reading.error == "GPU is lost"
    record(session, report(3, gpu("GPU-1")))
    assert gpus(session)["GPU-1"].reading == gpu("GPU-1")


def test_a_gpu_too_sick_to_say_who_it_is_shows_with_its_node(session: Session) -> None:
    nameless = GpuReading(uuid=None, index=1, name=None, pci_bus_id="00000000:19:00.0", error="unknown error")
    record(session, report(1, gpu("GPU-1"), nameless, replace(nameless, index=2)))
    state = nodes(session)["n1"]
    assert state.gpus == 1
    assert state.unidentified_gpus == tuple(
        UnidentifiedGpu(index=index, pci_bus_id="00000000:19:00.0", error="unknown error") for index in (1, 2)
    )
    record(session, report(2, gpu("GPU-1")))
    assert nodes(session)["n1"].unidentified_gpus == ()


def test_a_node_that_cannot_ask_its_driver_keeps_its_gpus_without_readings(session: Session) -> None:
    record(session, report(1, gpu("GPU-1"), gpu("GPU-2", 1)))
    record(session, report(2, gpu("GPU-1")))
    record(session, report(3, error="driver not loaded"))
    assert nodes(session)["n1"].error == "driver not loaded"
    assert set(gpus(session)) == {"GPU-1"}
    state = gpus(session)["GPU-1"]
    assert state.reading == GpuReading(uuid="GPU-1", index=0, name="NVIDIA H100 80GB HBM3", error="driver not loaded")
    assert gpus(session, min_free_bytes=0) == {}
    record(session, report(4, gpu("GPU-1")))
    assert (nodes(session)["n1"].error, gpus(session)["GPU-1"].reading.error) == (None, None)


def test_a_node_whose_driver_never_answered_has_no_gpus(session: Session) -> None:
    record(session, report(1, error="driver not loaded"))
    assert (nodes(session)["n1"].gpus, gpus(session)) == (0, {})


@pytest.mark.parametrize(
    ("age_seconds", "status"), [(0, "online"), (59.9, "online"), (60, "stale"), (299.9, "stale"), (300, "offline")]
)
def test_status_follows_the_age_of_the_last_report_in_python_and_in_sql(
    session: Session, age_seconds: float, status: inventory.NodeStatus
) -> None:
    record(session, report(1, gpu("GPU-1")), at=START)
    freshness = fresh(START + timedelta(seconds=age_seconds))
    for asked in inventory.NODE_STATUSES:
        found = inventory.list_nodes(session, freshness=freshness, limit=10, statuses=[asked]).items
        assert [state.status for state in found] == [status] * (asked == status)
        cards = inventory.list_gpus(session, GpuFilter(statuses={asked}), freshness=freshness, limit=10).items
        assert [state.node_status for state in cards] == [status] * (asked == status)
    assert inventory.list_nodes(session, freshness=freshness, limit=10, statuses=[]).items == ()


def test_gpus_are_found_by_what_they_are_and_where_they_are(session: Session) -> None:
    record(
        session,
        report(
            1, gpu("A", 0, free=10), gpu("B", 1, free=20, name="NVIDIA A100"), pool="p1", labels={"x": "1", "y": "2"}
        ),
        report(1, gpu("C", 0, free=30), node="n2", pool="p2", labels={"x": "1"}),
        report(1, gpu("D", 0, free=40), node="n3"),
    )
    assert set(gpus(session)) == {"A", "B", "C", "D"}
    assert set(gpus(session, pool="p1")) == {"A", "B"}
    assert set(gpus(session, names=["NVIDIA A100", "no such card"])) == {"B"}
    assert set(gpus(session, names=[])) == set()
    assert set(gpus(session, min_free_bytes=20)) == {"B", "C", "D"}
    assert set(gpus(session, node="n3")) == {"D"}
    assert set(gpus(session, labels={"x": "1"})) == {"A", "B", "C"}
    assert set(gpus(session, labels={"x": "1", "y": "2"}, min_free_bytes=11)) == {"B"}
    assert set(nodes(session, pool="p2")) == {"n2"}


def test_lists_come_in_pages_in_order(session: Session) -> None:
    for name in ("n2", "n10", "N1"):
        record(session, report(1, *(gpu(f"{name}-{index}", index) for index in (0, 10, 2)), node=name))
    in_order = [("N1", 0), ("N1", 2), ("N1", 10), ("n10", 0), ("n10", 2), ("n10", 10), ("n2", 0), ("n2", 2), ("n2", 10)]
    seen: list[tuple[str, int]] = []
    after: GpuKey | None = None
    for _ in range(5):
        page = inventory.list_gpus(session, GpuFilter(), freshness=fresh(), limit=2, after=after)
        seen += [(state.node, state.reading.index) for state in page.items]
        after = page.next_key
    assert (seen, after) == (in_order, None)
    first = inventory.list_nodes(session, freshness=fresh(), limit=2)
    assert [state.node.name for state in first.items] == ["N1", "n10"]
    rest = inventory.list_nodes(session, freshness=fresh(), limit=2, after=first.next_key)
    assert ([state.node.name for state in rest.items], rest.next_key) == (["n2"], None)


def test_an_unknown_node_is_not_found(session: Session) -> None:
    with pytest.raises(NotFound, match="/v1/nodes lists"):
        inventory.get_node(session, 2**62, freshness=fresh())


def test_a_batch_takes_few_statements_however_large_it_is(session: Session) -> None:
    def statements(*sent: NodeReport) -> int:
        seen: list[str] = []

        def note(_connection: object, _cursor: object, statement: str, *_: object) -> None:
            seen.extend([statement] * ("SAVEPOINT" not in statement))

        engine = session.get_bind().engine
        event.listen(engine, "before_cursor_execute", note)
        record(session, *sent)
        event.remove(engine, "before_cursor_execute", note)
        return len(seen)

    def fleet(sequence: int, gpus_per_node: int) -> list[NodeReport]:
        cards = {n: [gpu(f"{n}-{i}", i) for i in range(gpus_per_node)] for n in range(50)}
        return [report(sequence, *cards[n], node=f"node-{n}") for n in range(50)]

    assert statements(report(1, gpu("GPU-1"))) <= 4
    assert statements(*fleet(1, 8)) <= 4
    assert statements(*fleet(2, 8)) <= 4
    assert statements(*fleet(3, 7)) <= 5
    assert statements(*fleet(3, 7)) <= 2  # duplicates


@pytest.fixture
def own_engine(fresh_database: str) -> Iterator[Engine]:
    engine = db.make_engine(fresh_database, pool_size=8)
    yield engine
    engine.dispose()


def test_batches_recorded_at_once_lose_nothing_count_nothing_twice_and_never_deadlock(own_engine: Engine) -> None:
    """Every thread sends all reports of all nodes, shuffled its own way, while GPUs wander from node to node."""
    sessions = db.make_sessions(own_engine)
    sent = [
        report(sequence, *(gpu(f"G{(n + sequence + i) % 12}", i) for i in range(2)), node=f"n{n}")
        for n in range(6)
        for sequence in range(1, 7)
    ]
    together = threading.Barrier(6)

    def send(seed: int) -> list[Recorded]:
        mine = random.Random(seed).sample(sent, len(sent))  # noqa: S311 an order, not a secret
        together.wait(30)
        counts = []
        for start in range(0, len(mine), 5):
            with db.transaction(sessions) as session:
                batch = ReportBatch(reports=tuple(mine[start : start + 5]))
                counts.append(inventory.record(session, batch, received_at=START + timedelta(hours=1)))
        return counts

    with ThreadPoolExecutor(6) as pool:
        counts = [count for of_thread in pool.map(send, range(6)) for count in of_thread]
    assert sum(count.accepted for count in counts) == len(sent)
    assert sum(count.duplicates for count in counts) == 5 * len(sent)
    with db.transaction(sessions) as session:
        assert session.scalar(select(func.count()).select_from(reports)) == len(sent)
        assert {state.sequence for state in nodes(session).values()} == {6}


def test_two_nodes_that_swap_gpus_at_the_same_moment_do_not_deadlock(own_engine: Engine) -> None:
    sessions = db.make_sessions(own_engine)
    names = [f"G{number:02}" for number in range(16)]
    together = threading.Barrier(2)

    def send(node: int) -> None:
        for sequence in range(1, 16):
            half = names[::2] if (node + sequence) % 2 else names[1::2]
            together.wait(30)
            with db.transaction(sessions) as session:
                cards = [gpu(name, index) for index, name in enumerate(half)]
                record(session, report(sequence, *cards, node=f"n{node}"))

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(send, range(2)))
    with db.transaction(sessions) as session:
        assert set(gpus(session, include_absent=True)) == set(names)
