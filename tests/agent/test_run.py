"""Whole runs of the agent, as an operator starts them, against a real server that fails in every way it can."""

import json
import signal
import time
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from statistics import median

import pytest


def test_once_reports_the_node_as_it_was_configured(agent, server):
    running = agent.run(
        "--once", "--demo", "--server", server.url, "--pool", "training", "--label", "zone=eu-1", "--label", "rack=r7"
    )

    assert running.process.returncode == 0, running.stderr.read_text()
    ((name, _, _),) = server.stored
    (report,) = server.stored.values()
    assert name == "gpu-node-1"
    assert report["node"]["pool"] == "training"
    assert report["node"]["labels"] == {"zone": "eu-1", "rack": "r7"}
    assert report["node"]["demo"] is True
    assert len(report["gpus"]) == 8
    assert agent.kept() == []
    assert running.log() == []


def test_a_real_node_without_a_driver_reports_that(agent, server):
    running = agent.run("--once", "--server", server.url, library="none")

    assert running.process.returncode == 0
    (report,) = server.stored.values()
    assert report["gpus"] == []
    assert report["error"].startswith("no NVIDIA driver library")
    assert [line["level"] for line in running.log()] == ["warning"]


def test_print_needs_no_server_and_keeps_nothing(agent):
    running = agent.run("--print", "--once", "--demo", "2")

    (report,) = running.reports()
    assert len(report["gpus"]) == 2
    assert not agent.state_dir.exists()


def test_with_the_server_down_the_report_is_kept_and_goes_with_the_next_run(agent, server):
    server.down()
    first = agent.run("--once", "--demo", "--server", server.url)
    (kept,) = agent.kept()
    server.up()
    second = agent.run("--once", "--demo", "--server", server.url)

    assert (first.process.returncode, second.process.returncode) == (1, 0)
    assert [line["message"] for line in first.log()] == ["the report is not stored, and is kept"]
    assert len(server.requests) == 1
    assert kept in server.stored.values()
    assert len(server.stored) == 2
    assert agent.kept() == []


def test_a_server_that_comes_back_gets_everything_from_a_running_agent(agent, server, eventually):
    server.down()
    running = agent.start("--demo", "--server", server.url, "--interval-seconds", "0.1")
    eventually(lambda: len(agent.kept()) >= 3)
    kept = {report["sequence"] for report in agent.kept()}
    server.up()
    eventually(lambda: kept <= set(server.sequences()))

    assert running.signal(signal.SIGTERM) == 0
    messages = [line["message"] for line in running.log()]
    assert messages[0] == "started"
    assert "the server cannot be reached" in messages
    assert "the server takes reports again" in messages
    assert messages[-1] == "ended"


def test_a_lost_answer_makes_the_same_report_come_again(agent, server, reply, eventually):
    server.replies.append(reply(lost=True))
    running = agent.start("--demo", "--server", server.url, "--interval-seconds", "3600")
    eventually(lambda: len(server.requests) == 2)
    eventually(lambda: agent.kept() == [])

    assert server.requests[0].reports == server.requests[1].reports
    assert len(server.stored) == 1
    assert running.signal(signal.SIGTERM) == 0


def test_retry_after_is_waited_for(agent, server, reply, eventually):
    server.replies.append(reply(503, {"Retry-After": "2"}))
    agent.start("--demo", "--server", server.url, "--interval-seconds", "3600")
    eventually(lambda: len(server.requests) == 2)

    waited_seconds = server.requests[1].at_seconds - server.requests[0].at_seconds
    assert 2.0 <= waited_seconds < 4.0
    eventually(lambda: agent.kept() == [])


def test_a_refused_token_keeps_every_report_until_it_is_exchanged(agent, server, reply):
    token = agent.folder / "token"
    token.write_text("revoked")
    arguments = ("--once", "--demo", "--server", server.url, "--token-file", str(token))
    server.replies.extend([reply(401, body=b'{"detail": "unknown token"}'), reply(403)])
    first, second = agent.run(*arguments), agent.run(*arguments)
    token.write_text("valid")
    third = agent.run(*arguments)

    assert [running.process.returncode for running in (first, second, third)] == [1, 1, 0]
    assert "401 Unauthorized" in first.log()[0]["answer"]
    assert "unknown token" in first.log()[0]["answer"]
    assert "revoked" not in first.stderr.read_text(), "a token is never logged"
    assert [request.headers["Authorization"] for request in server.requests][-1] == "Bearer valid"
    assert len(server.stored) == 3
    assert agent.kept() == []


def test_a_running_agent_with_a_refused_token_says_so_and_does_not_hammer(agent, server, reply, eventually):
    server.refuses = lambda _reports: reply(401)
    running = agent.start("--demo", "--server", server.url, "--interval-seconds", "0.1")
    eventually(lambda: len(agent.kept()) >= 10)

    assert len(server.requests) == 1
    errors = [line for line in running.log() if line["level"] == "error"]
    assert [line["message"] for line in errors] == [
        "the server does not admit this agent: check its token and the server's address"
    ]
    assert errors[0]["next_attempt_seconds"] >= 30
    assert running.signal(signal.SIGTERM) == 0


def test_too_large_a_batch_is_sent_in_parts(agent, server, reply):
    server.down()
    for _ in range(3):
        assert agent.run("--once", "--demo", "--server", server.url).process.returncode == 1
    server.refuses = lambda reports: reply(413) if len(reports) > 2 else None
    server.up()

    assert agent.run("--once", "--demo", "--server", server.url).process.returncode == 0
    assert len(server.stored) == 4
    assert agent.kept() == []


def test_after_kill_9_nothing_is_lost_and_no_sequence_comes_twice(agent, server, reply, eventually):
    """The server fails half of the time, so that kills meet reports in every state; it checks identities itself."""
    arguments = ("--demo", "--server", server.url, "--interval-seconds", "0.1")
    seen: dict[int, dict] = {}
    for answers in (3, 5, 6):
        server.replies.extend([reply(), reply(lost=True), reply(503, {"Retry-After": "0"}), reply()])
        running = agent.start(*arguments)
        enough = len(server.requests) + answers
        eventually(lambda enough=enough: len(server.requests) >= enough)
        running.process.send_signal(signal.SIGKILL)
        running.process.wait()
        for report in agent.kept():
            assert seen.setdefault(report["sequence"], report) == report
    server.replies.clear()
    kept = {report["sequence"] for report in agent.kept()}
    final = agent.run("--once", *arguments)

    assert final.process.returncode == 0, final.stderr.read_text()
    assert agent.kept() == []
    assert kept | seen.keys() <= set(server.sequences())
    received = [report["sequence"] for request in server.requests for report in request.reports]
    assert set(received) == set(server.sequences())


def test_a_report_damaged_on_disk_stops_no_other(agent, server):
    server.down()
    for _ in range(2):
        agent.run("--once", "--demo", "--server", server.url)
    damaged = min(agent.state_dir.glob("*.json"))
    damaged.write_bytes(damaged.read_bytes()[:100])
    server.up()

    running = agent.run("--once", "--demo", "--server", server.url)

    assert running.process.returncode == 0
    assert len(server.stored) == 2
    assert [line["message"] for line in running.log()] == ["a kept report is damaged and was removed"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_agent_at_once(agent, server, eventually, number):
    running = agent.start("--demo", "--server", server.url, "--interval-seconds", "3600")
    eventually(lambda: len(server.stored) == 1)
    signalled = datetime.now(UTC)

    assert running.signal(number) == 0
    ended = running.log()[-1]
    assert ended["message"] == "ended"
    assert datetime.fromisoformat(ended["time"]) - signalled < timedelta(seconds=1)


def test_a_signal_ends_the_agent_soon_even_if_the_server_never_answers(agent, server, reply, eventually):
    server.replies.append(reply(hang=True))
    running = agent.start("--demo", "--server", server.url, "--interval-seconds", "0.1")
    eventually(lambda: len(server.requests) == 1)
    eventually(lambda: len(agent.kept()) >= 3)
    started = time.monotonic()

    assert running.signal(signal.SIGTERM) == 0
    assert time.monotonic() - started < 3.0
    assert len(agent.kept()) >= 3, "readings go on while the server keeps the agent waiting"


def test_readings_keep_their_pace(agent):
    running = agent.start("--print", "--demo", "1", "--interval-seconds", "0.2")
    time.sleep(1.5)
    running.signal(signal.SIGTERM)

    sequences = [report["sequence"] for report in running.reports()]
    gaps_seconds = [(later - earlier) / 1e6 for earlier, later in pairwise(sequences)]
    assert len(gaps_seconds) >= 3
    assert 0.18 < median(gaps_seconds) < 0.3


def test_the_log_is_json_with_time_and_level(agent, server):
    server.down()
    running = agent.run("--once", "--demo", "--server", server.url, environment={"TONNAGE_AGENT_SERVICE_HOST": "x"})

    lines = [json.loads(line) for line in running.stderr.read_text().splitlines()]
    assert [line["level"] for line in lines] == ["warning", "warning"]
    assert lines[0]["message"].startswith("the variable TONNAGE_AGENT_SERVICE_HOST means nothing to the agent")
    assert all(line["time"].endswith("Z") and line["logger"] == "app.agent" for line in lines)


def test_the_agent_loads_none_of_the_services_packages(agent):
    running = agent.python(
        "import sys, app.agent.__main__, app.agent.nvml; print(*sorted(name.split('.')[0] for name in sys.modules))"
    )

    loaded = set(running.stdout.read_text().split())
    assert {"httpx", "pynvml"} <= loaded
    assert not loaded & {"fastapi", "starlette", "pydantic", "pydantic_settings", "sqlalchemy", "alembic", "psycopg"}


def test_the_demonstration_does_not_need_nvmls_bindings(agent, server):
    script = (
        f"import sys; sys.modules['pynvml'] = None; from app.agent.__main__ import main; "
        f"print(main(['--once', '--demo', '--server', '{server.url}']), main(['--once', '--server', '{server.url}']))"
    )
    running = agent.python(script)

    assert running.stdout.read_text().split() == ["0", "2"]
    assert "pynvml is not installed: pip install 'tonnage[agent]', or use --demo" in running.stderr.read_text()
