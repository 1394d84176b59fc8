"""Options: what is meant is understood, what is wrong is one sentence and a status of 2."""

import re
import socket
from pathlib import Path

import pytest

from app.agent.options import VARIABLES, OptionError, parse

AGENT = Path(__file__).parents[2] / "app" / "agent"
OPERATIONS = Path(__file__).parents[2] / "docs" / "operations.md"


def test_a_local_service_needs_no_options_at_all():
    options = parse([], {"XDG_STATE_HOME": "/state"})

    assert options.server == "http://127.0.0.1:8000"
    assert options.token() is None
    assert options.node.name == socket.gethostname()
    assert options.interval_seconds == 5.0
    assert options.state_dir == Path("/state/tonnage-agent")
    assert (options.outbox_max_reports, options.outbox_max_bytes) == (20_000, 256 * 2**20)
    assert (options.demo_gpus, options.once, options.print_only) == (None, False, False)
    assert options.warnings == ()


def test_every_option_may_be_a_variable_and_the_command_line_comes_first(tmp_path):
    (tmp_path / "token").write_text("secret\n")
    environ = {
        "TONNAGE_AGENT_SERVER": "https://tonnage.example.org/",
        "TONNAGE_AGENT_TOKEN_FILE": str(tmp_path / "token"),
        "TONNAGE_AGENT_NODE": "from-variable",
        "TONNAGE_AGENT_POOL": "training",
        "TONNAGE_AGENT_LABELS": "zone=eu-1,team/owner=vision",
        "TONNAGE_AGENT_INTERVAL_SECONDS": "2.5",
        "TONNAGE_AGENT_PROCESSES": "none",
        "TONNAGE_AGENT_STATE_DIR": "/from/variable",
        "TONNAGE_AGENT_OUTBOX_MAX_REPORTS": "10",
        "TONNAGE_AGENT_OUTBOX_MAX_BYTES": "1MiB",
        "TONNAGE_AGENT_DEMO": "4",
        "TONNAGE_AGENT_LOG_LEVEL": "debug",
    }

    options = parse(["--node", "from-command-line", "--label", "a=1", "--label", "b=2"], environ)

    assert options.server == "https://tonnage.example.org"
    assert options.token() == "secret"
    assert options.node.name == "from-command-line"
    assert options.node.pool == "training"
    assert options.node.labels == {"a": "1", "b": "2"}
    assert options.node.demo is True
    assert options.interval_seconds == 2.5
    assert options.processes == "none"
    assert options.state_dir == Path("/from/variable")
    assert (options.outbox_max_reports, options.outbox_max_bytes) == (10, 2**20)
    assert (options.demo_gpus, options.log_level) == (4, "debug")
    assert options.warnings == ()
    assert parse([], environ).node.labels == {"zone": "eu-1", "team/owner": "vision"}


def test_the_demonstration_has_eight_gpus_and_an_outbox_of_its_own():
    options = parse(["--demo", "--node", "demo-1"], {"STATE_DIRECTORY": "/var/lib/a:/var/lib/b"})

    assert options.demo_gpus == 8
    assert options.state_dir == Path("/var/lib/a/demo/demo-1")
    assert parse([], {"STATE_DIRECTORY": "/var/lib/a:/var/lib/b"}).state_dir == Path("/var/lib/a")


def test_an_empty_variable_is_as_good_as_none():
    assert parse([], {"TONNAGE_AGENT_SERVER": "", "TONNAGE_AGENT_TOKEN": ""}).server == "http://127.0.0.1:8000"


@pytest.mark.parametrize(
    ("arguments", "environ", "sentence"),
    [
        (["--intervall-seconds", "5"], {}, "unrecognized arguments: --intervall-seconds"),
        (["--interval", "5"], {}, "unrecognized arguments: --interval"),
        (["--interval-seconds"], {}, "expected one argument"),
        (["--interval-seconds", "0"], {}, "--interval-seconds: must be a number from 0.1 to 3600, not '0'"),
        (["--interval-seconds", "nan"], {}, "--interval-seconds: must be a number"),
        ([], {"TONNAGE_AGENT_INTERVAL_SECONDS": "5s"}, "TONNAGE_AGENT_INTERVAL_SECONDS: must be a number"),
        (["--demo", "65"], {}, "--demo: must be a number from 1 to 64"),
        (["--demo", "many"], {}, "--demo: must be a number from 1 to 64"),
        (["--outbox-max-reports", "0"], {}, "--outbox-max-reports: must be a number from 1"),
        (["--outbox-max-bytes", "lots"], {}, "--outbox-max-bytes: 'lots' is not a size"),
        (["--processes", "all"], {}, "--processes: must be named, unnamed or none, not 'all'"),
        (["--log-level", "loud"], {}, "--log-level: must be debug, info, warning or error, not 'loud'"),
        (["--server", "tonnage.example.org"], {}, "--server: 'tonnage.example.org' is not the address of a server"),
        (["--server", "ftp://a"], {}, "is not the address of a server"),
        (["--server", "http://"], {}, "is not the address of a server"),
        (["--server", "http://a:99999"], {}, "is not the address of a server"),
        (["--server", "http://a?b"], {}, "is not the address of a server"),
        (["--server", "http://user:word@a"], {}, "is not the address of a server"),
        (["--server", "http://[::1"], {}, "is not the address of a server"),
        (["--label", "zone"], {}, "--label: a label is written key=value, not 'zone'"),
        ([], {"TONNAGE_AGENT_LABELS": "a=1,b"}, "TONNAGE_AGENT_LABELS: a label is written key=value, not 'b'"),
        (["--label", "a b=c"], {}, "--node, --pool or --label: a label's key must be"),
        (["--node", "a/b"], {}, "--node, --pool or --label: name must be"),
        (["--pool", "a b"], {}, "--node, --pool or --label: pool must be"),
        (["--token-file", "/no/such/file"], {}, "the agent's token: /no/such/file cannot be read: No such file"),
        ([], {"TONNAGE_AGENT_TOKEN": "two words"}, "the agent's token: a token is one word"),
        ([], {"TONNAGE_AGENT_TOKEN": "a", "TONNAGE_AGENT_TOKEN_FILE": "b"}, "are both set: unset one"),
    ],
)
def test_what_is_wrong_is_said_in_one_sentence(arguments, environ, sentence):
    with pytest.raises(OptionError) as error:
        parse(arguments, environ | {"XDG_STATE_HOME": "/state"})

    assert sentence in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("content", ["", "two words", "schlüssel"])
def test_a_token_file_without_a_token_is_said(tmp_path, content):
    (tmp_path / "token").write_text(content, encoding="utf-8")

    with pytest.raises(OptionError, match="does not hold a token"):
        parse(["--token-file", str(tmp_path / "token"), "--state-dir", "/state"], {})


@pytest.mark.parametrize(
    ("server", "warned"),
    [
        ("http://127.0.0.1:8000", False),
        ("http://localhost", False),
        ("http://[::1]:8000", False),
        ("https://tonnage.example.org", False),
        ("http://tonnage.example.org", True),
        ("http://192.0.2.1", True),
    ],
)
def test_a_token_over_plain_http_to_another_machine_is_warned_of(server, warned):
    arguments = ["--server", server, "--state-dir", "/state"]

    assert bool(parse(arguments, {"TONNAGE_AGENT_TOKEN": "secret"}).warnings) is warned
    assert parse(arguments, {}).warnings == ()


def test_a_misspelt_variable_is_warned_of_with_the_nearest_name():
    options = parse([], {"TONNAGE_AGENT_INTERVAL": "5", "XDG_STATE_HOME": "/state"})

    assert options.warnings == (
        "the variable TONNAGE_AGENT_INTERVAL means nothing to the agent; did you mean TONNAGE_AGENT_INTERVAL_SECONDS?",
    )


def test_a_wrong_option_ends_the_agent_with_status_2_and_one_line(agent):
    running = agent.run("--interval-seconds", "never")

    assert running.process.returncode == 2
    assert running.stderr.read_text().splitlines() == [
        "tonnage agent: --interval-seconds: must be a number from 0.1 to 3600, not 'never'"
    ]


def test_a_state_directory_in_use_ends_the_agent_with_status_2(agent, server, eventually):
    agent.start("--demo", "--server", server.url)
    eventually(lambda: len(server.requests) > 0)

    running = agent.run("--demo", "--once", "--server", server.url)

    assert running.process.returncode == 2
    assert "another agent keeps its reports in" in running.stderr.read_text()


def test_help_and_the_operators_manual_name_every_option(agent):
    running = agent.run("--help")

    assert running.process.returncode == 0
    text, manual = running.stdout.read_text(), OPERATIONS.read_text(encoding="utf-8")
    options = set(re.findall(r"(?m)^  (--[a-z-]+)", text)) - {"--version"}
    assert len(options) == len(VARIABLES) + 1, "all but TONNAGE_AGENT_TOKEN, and two that have no variable"
    assert options == set(re.findall(r"(?m)^\| `(--[a-z-]+)", manual))
    assert set(VARIABLES) == set(re.findall(r"(?m)^\|[^|]*\| `(TONNAGE_AGENT_[A-Z_]+)` \|", manual))
    assert "exit status:" in text


def test_the_operators_manual_says_what_the_log_says():
    manual = OPERATIONS.read_text(encoding="utf-8")
    sources = "".join(path.read_text(encoding="utf-8") for path in AGENT.glob("*.py"))
    table = manual.partition("### What failures look like")[2]
    quoted = [text for row in re.findall(r"(?m)^\| (.*?) \|", table) for text in re.findall(r"`([a-z][^`]{20,})`", row)]
    assert len(quoted) > 8
    for sentence in quoted:
        assert sentence.removesuffix(" …") in sources, sentence
