"""From the outbox to a real HTTP server: nothing is dropped before an answer, and one bad report stops no other."""

import threading
from contextlib import ExitStack, closing
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from types import SimpleNamespace

import pytest

from app.agent.bearer import fixed_token, token_file
from app.agent.client import Answer, Away, Client, NotAdmitted, Refused
from app.agent.delivery import Delivery
from app.agent.outbox import Outbox
from app.telemetry import Node, NodeReport, to_json

REPORT = NodeReport(
    node=Node(name="gpu-node-1", agent_version="0.1.0"),
    boot_id="2f1c9e02-7f2d-4c0e-9a55-6f6b2f6f0c11",
    sequence=0,
    sampled_at=datetime(2026, 1, 31, tzinfo=UTC),
    gpus=(),
)


def written(sequence: int) -> bytes:
    return to_json(replace(REPORT, sequence=sequence))


@pytest.fixture
def client_of():
    """Makes clients of a server's URL, and closes them with the test."""
    with ExitStack() as stack:
        yield lambda url, token=None: stack.enter_context(closing(Client(url, token or fixed_token(None))))


@pytest.fixture
def mail(tmp_path, server, client_of):
    """An outbox, a client and what delivers from one through the other."""
    outbox = Outbox(tmp_path / "outbox", max_reports=10_000, max_bytes=10_000_000)
    client = client_of(server.url, fixed_token("tonnage-agent-secret"))

    def fill(count: int, first: int = 0) -> None:
        for sequence in range(first, first + count):
            outbox.add(written(sequence))

    yield SimpleNamespace(
        outbox=outbox,
        client=client,
        fill=fill,
        deliver=lambda: Delivery(outbox, client).send_all(threading.Event()),
        left=lambda: len(outbox),
        aside=lambda: len(list((tmp_path / "outbox" / "rejected").glob("*"))),
    )
    outbox.close()


def test_a_batch_is_posted_with_the_token_and_answered_with_counts(server, mail):
    assert mail.client.send([written(1), written(2)]) == Answer(accepted=2, duplicates=0)
    assert mail.client.send([written(2), written(3)]) == Answer(accepted=1, duplicates=1)

    request = server.requests[0]
    assert request.path == "/v1/agent/reports"
    assert request.headers["Authorization"] == "Bearer tonnage-agent-secret"
    assert request.headers["Content-Type"] == "application/json"
    assert request.headers["User-Agent"].startswith("tonnage-agent/")


def test_without_a_token_no_authorization_is_sent(server, client_of):
    client_of(server.url).send([written(1)])

    assert "Authorization" not in server.requests[0].headers


def test_a_server_below_a_path_is_found(server, client_of):
    client_of(f"{server.url}/tonnage").send([written(1)])

    assert server.requests[0].path == "/tonnage/v1/agent/reports"


def test_a_proxy_for_the_outside_world_is_not_asked_for_this_machine(server, client_of, monkeypatch):
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")

    assert client_of(server.url).send([written(1)]).accepted == 1


def test_a_token_that_was_exchanged_in_its_file_is_used_at_once(server, client_of, tmp_path):
    path = tmp_path / "token"
    path.write_text("old\n")
    client = client_of(server.url, token_file(path))
    client.send([written(1)])
    path.write_text("new\n")
    client.send([written(2)])
    path.unlink()

    assert [request.headers["Authorization"] for request in server.requests] == ["Bearer old", "Bearer new"]
    with pytest.raises(NotAdmitted, match=r"no token: .*token cannot be read"):
        client.send([written(3)])


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        *((status, Away) for status in (408, 429, 500, 502, 503, 504)),
        *((status, Refused) for status in (400, 413, 422)),
        *((status, NotAdmitted) for status in (201, 301, 307, 401, 403, 404, 405)),
    ],
)
def test_what_each_status_means_and_that_the_answer_is_told(server, mail, reply, status, kind):
    server.replies.append(reply(status, body=b'{"detail": "because"}'))

    with pytest.raises(kind, match=f"{status} .*because"):
        mail.client.send([written(1)])


@pytest.mark.parametrize(
    "body",
    [
        b"<html>Please log in</html>",
        b"[]",
        b"null",
        b"{}",
        b'{"accepted": 1}',
        b'{"accepted": 0, "duplicates": 0}',
        b'{"accepted": "1", "duplicates": 0}',
        b'{"accepted": 2, "duplicates": 0}',
        b"\xff",
    ],
)
def test_an_answer_that_is_not_the_services_costs_no_report(server, mail, reply, body):
    mail.fill(1)
    server.replies.append(reply(200, body=body))

    with pytest.raises(NotAdmitted, match="this is not the service's answer"):
        mail.deliver()

    assert mail.left() == 1


def test_a_server_that_is_not_there_is_away(server, mail):
    server.down()

    with pytest.raises(Away, match=r"no answer from http://127\.0\.0\.1"):
        mail.client.send([written(1)])


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("7", 7.0),
        ("0", 0.0),
        ("-3", 0.0),
        ("86400", 3_600.0),
        ("soon", None),
        ("nan", None),
        ("Tue, 31 Jan 2006 12:00:00 GMT", 0.0),
    ],
)
def test_how_long_the_server_asks_to_wait(server, mail, reply, value, seconds):
    server.replies.append(reply(503, {"Retry-After": value}))

    with pytest.raises(Away) as away:
        mail.client.send([written(1)])

    assert away.value.retry_after_seconds == seconds


def test_the_wait_may_be_a_date(server, mail, reply):
    server.replies.append(reply(429, {"Retry-After": format_datetime(datetime.now(UTC) + timedelta(seconds=60))}))

    with pytest.raises(Away) as away:
        mail.client.send([written(1)])

    assert 50 < away.value.retry_after_seconds <= 60


def test_a_backlog_goes_in_batches_with_the_newest_first(server, mail):
    mail.fill(450)

    mail.deliver()

    assert [len(request.reports) for request in server.requests] == [200, 200, 50]
    assert server.requests[0].reports[0]["sequence"] == 449
    assert sorted(server.sequences()) == list(range(450))
    assert mail.left() == 0


def test_when_the_server_goes_away_in_the_middle_only_what_it_answered_for_is_dropped(server, mail, reply):
    mail.fill(450)
    server.replies.extend([reply(), reply(503)])

    with pytest.raises(Away):
        mail.deliver()
    assert mail.left() == 250
    mail.deliver()

    assert sorted(server.sequences()) == list(range(450))
    assert mail.left() == 0


def test_after_a_lost_answer_the_same_reports_are_sent_again_and_stored_once(server, mail, reply):
    mail.fill(3)
    server.replies.append(reply(lost=True))

    with pytest.raises(Away):
        mail.deliver()
    assert mail.left() == 3
    mail.deliver()

    assert server.requests[0].reports == server.requests[1].reports
    assert sorted(server.sequences()) == [0, 1, 2]
    assert mail.left() == 0


def test_one_bad_report_is_found_and_put_aside_and_all_others_arrive(server, mail, reply, caplog):
    mail.fill(64)
    server.refuses = lambda reports: (
        reply(422, body=b'{"detail": "no"}') if any(report["sequence"] == 17 for report in reports) else None
    )

    mail.deliver()

    assert sorted(server.sequences()) == [number for number in range(64) if number != 17]
    assert (mail.left(), mail.aside()) == (0, 1)
    assert len(server.requests) < 20, "bad reports are found by halving"
    (record,) = [record for record in caplog.records if record.levelname == "ERROR"]
    assert record.message == "the server refuses a report, and it was put aside"
    assert "422" in record.answer


def test_a_batch_too_large_for_the_server_is_sent_in_smaller_ones(server, mail, reply):
    mail.fill(200)
    server.refuses = lambda reports: reply(413) if len(reports) > 30 else None

    mail.deliver()

    assert sorted(server.sequences()) == list(range(200))
    assert (mail.left(), mail.aside()) == (0, 0)


def test_a_server_that_refuses_everything_costs_no_report(server, mail, reply):
    mail.fill(50)
    server.refuses = lambda _reports: reply(422)

    with pytest.raises(Refused):
        mail.deliver()
    assert (mail.left(), mail.aside()) == (50, 0)
    assert len(server.requests) == 2
    server.refuses = lambda _reports: None
    mail.deliver()

    assert sorted(server.sequences()) == list(range(50))


def test_a_single_report_that_is_refused_waits_until_the_server_takes_another(server, mail, reply):
    mail.fill(1)
    server.refuses = lambda reports: reply(422) if any(report["sequence"] == 0 for report in reports) else None

    with pytest.raises(Refused):
        mail.deliver()
    assert (mail.left(), mail.aside()) == (1, 0)
    mail.fill(1, first=1)
    mail.deliver()

    assert (mail.left(), mail.aside()) == (0, 1)
    assert server.sequences() == [1]


@pytest.mark.parametrize("status", [401, 403, 404])
def test_an_agent_that_is_not_admitted_keeps_everything(server, mail, reply, status):
    mail.fill(10)
    server.replies.append(reply(status))

    with pytest.raises(NotAdmitted):
        mail.deliver()

    assert (mail.left(), mail.aside(), len(server.requests)) == (10, 0, 1)
