from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from uuid import UUID, uuid4

import pytest
from sqlalchemy.orm import Session

from app.errors import InvalidInput, NotFound, StaleRevision
from app.storage import db, plans
from app.storage.plans import Plan, PlanContent, PlanKey

NOW = datetime(2026, 1, 31, 12, 0, 0, 123456, tzinfo=UTC)
LATER = NOW + timedelta(hours=1)


def content(total_bytes: int = 119_000_000_001) -> PlanContent:
    return PlanContent(
        request={"model": {"id": "meta-llama/Llama-3.1-8B"}, "note": "ä\u2028\U0001f600"},
        resolved={"model": {"layers": 32}, "share": 0.1},
        estimate={"total_bytes": total_bytes, "fits": None, "components": [{"name": "weights", "bytes": 2**60}]},
        engine_version="0.1.0",
    )


def create(session: Session, name: str = "llama", now: datetime = NOW, **labels: str) -> Plan:
    return plans.create(
        session, name=name, description=None, labels=labels, content=content(), created_by="ops", now=now
    )


def revise(session: Session, plan: Plan, expected_revision: int, total_bytes: int = 1) -> Plan:
    return plans.new_revision(
        session,
        plan.id,
        expected_revision=expected_revision,
        name="renamed",
        description="why",
        labels={"team": "nlp"},
        content=content(total_bytes),
        created_by="someone else",
        now=LATER,
    )


def test_a_plan_comes_back_as_it_was_stored(session: Session) -> None:
    plan = create(session, team="vision")
    assert plans.get(session, plan.id) == plan
    assert plan.revision == 1
    assert plan.content == content()
    assert plans.get(session, plan.id).content.estimate["components"][0]["bytes"] == 2**60


def test_a_new_revision_replaces_what_is_current_and_keeps_what_was(session: Session) -> None:
    plan = create(session)
    revised = revise(session, plan, 1)
    assert plans.get(session, plan.id) == revised
    assert (revised.revision, revised.name, revised.description, revised.labels) == (
        2,
        "renamed",
        "why",
        {"team": "nlp"},
    )
    assert (revised.created_at, revised.created_by, revised.updated_at) == (NOW, "ops", LATER)
    first, second = (plans.get_revision(session, plan.id, number) for number in (1, 2))
    assert (first.content, first.created_by, first.created_at) == (plan.content, "ops", NOW)
    assert (second.content, second.created_by, second.created_at) == (content(1), "someone else", LATER)


def test_a_change_on_an_older_revision_is_refused_and_changes_nothing(session: Session) -> None:
    plan = create(session)
    revised = revise(session, plan, 1)
    for expected in (0, 1, 3):
        with pytest.raises(StaleRevision):
            revise(session, plan, expected, total_bytes=666)
        with pytest.raises(StaleRevision):
            plans.delete(session, plan.id, expected_revision=expected, now=LATER)
    assert plans.get(session, plan.id) == revised
    assert len(plans.list_revisions(session, plan.id, limit=10).items) == 2


def test_a_deleted_plan_is_gone_everywhere(session: Session) -> None:
    plan = create(session)
    plans.delete(session, plan.id, expected_revision=1, now=LATER)
    assert plans.list_plans(session, limit=10).items == ()
    for read in (
        lambda: plans.get(session, plan.id),
        lambda: plans.get_revision(session, plan.id, 1),
        lambda: plans.list_revisions(session, plan.id, limit=10),
        lambda: revise(session, plan, 1),
        lambda: plans.delete(session, plan.id, expected_revision=1, now=LATER),
    ):
        with pytest.raises(NotFound):
            read()


def test_unknown_plans_and_revisions_are_not_found(session: Session) -> None:
    plan = create(session)
    with pytest.raises(NotFound, match=r"/v1/plans lists"):
        plans.get(session, uuid4())
    with pytest.raises(NotFound, match=r"/revisions lists"):
        plans.get_revision(session, plan.id, 2)
    assert plans.list_revisions(session, plan.id, limit=10, after=1).items == ()


def test_of_changes_made_at_once_exactly_one_wins(fresh_database: str) -> None:
    engine = db.make_engine(fresh_database)
    sessions = db.make_sessions(engine)
    with db.transaction(sessions) as session:
        plan = create(session)

    def change(number: int) -> int | None:
        try:
            with db.transaction(sessions) as session:
                revise(session, plan, 1, total_bytes=number)
        except StaleRevision:
            return None
        return number

    with ThreadPoolExecutor(8) as pool:
        winners = [number for number in pool.map(change, range(1, 9)) if number is not None]
    with db.transaction(sessions) as session:
        stored = plans.get(session, plan.id)
    assert [stored.content.estimate["total_bytes"]] == winners
    assert stored.revision == 2
    engine.dispose()


def names(session: Session, **wanted: object) -> list[str]:
    return [plan.name for plan in plans.list_plans(session, limit=100, **wanted).items]  # type: ignore[arg-type]


def test_pages_hold_every_plan_once_newest_first_even_when_times_are_equal(session: Session) -> None:
    made = [create(session, f"p{n}", NOW + timedelta(seconds=n // 3)) for n in range(10)]
    seen: list[UUID] = []
    after: PlanKey | None = None
    while True:
        page = plans.list_plans(session, limit=3, after=after)
        seen += [plan.id for plan in page.items]
        after = page.next_key
        if after is None:
            break
    assert sorted(seen) == sorted(plan.id for plan in made)
    times = [plans.get(session, plan_id).created_at for plan_id in seen]
    assert times == sorted(times, reverse=True)


def test_a_page_that_is_exactly_full_is_the_last(session: Session) -> None:
    create(session)
    create(session)
    assert plans.list_plans(session, limit=2).next_key is None
    assert plans.list_plans(session, limit=1).next_key is not None


def test_plans_are_found_by_part_of_their_name(session: Session) -> None:
    for name in ("Llama 8B", "100%_done", "Ärger"):
        create(session, name)
    assert names(session, name_contains="lama 8b") == ["Llama 8B"]
    assert names(session, name_contains="%") == ["100%_done"]
    assert names(session, name_contains="0%_d") == ["100%_done"]
    assert names(session, name_contains="_") == ["100%_done"]
    assert names(session, name_contains="ärg") == ["Ärger"]
    assert names(session, name_contains="\\") == []


def test_plans_are_found_by_all_of_the_labels(session: Session) -> None:
    create(session, "both", team="nlp", stage="draft")
    create(session, "one", NOW + timedelta(seconds=1), team="nlp")
    assert names(session, labels={"team": "nlp"}) == ["one", "both"]
    assert names(session, labels={"team": "nlp", "stage": "draft"}) == ["both"]
    assert names(session, labels={"team": "NLP"}) == []
    assert names(session, labels={}) == ["one", "both"]


def test_revisions_come_in_pages_newest_first(session: Session) -> None:
    plan = create(session)
    for number in range(1, 5):
        revise(session, plan, number)
    first = plans.list_revisions(session, plan.id, limit=3)
    assert [item.revision for item in first.items] == [5, 4, 3]
    rest = plans.list_revisions(session, plan.id, limit=3, after=first.next_key)
    assert ([item.revision for item in rest.items], rest.next_key) == ([2, 1], None)


@pytest.mark.parametrize("name", ["a\0b", "\ud800"])
def test_a_name_that_cannot_be_stored_is_the_callers_mistake(session: Session, name: str) -> None:
    with pytest.raises(InvalidInput, match="cannot be stored"), session.begin_nested():
        create(session, name)


@pytest.mark.parametrize("value", ["a\0b", "\ud800"])
def test_so_is_such_a_text_deep_in_a_request(session: Session, value: str) -> None:
    with pytest.raises(InvalidInput, match="cannot be stored"), session.begin_nested():
        plans.create(
            session,
            name="n",
            description=None,
            labels={"key": value},
            content=content(),
            created_by="ops",
            now=NOW,
        )
