"""The agent's options: the command line first, then `TONNAGE_AGENT_*` variables, then the defaults."""

import argparse
import os
import socket
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NoReturn, TypeVar
from urllib.parse import urlsplit

from app import __version__
from app.agent.bearer import Token, fixed_token, token_file
from app.agent.client import is_loopback
from app.agent.reading import ProcessDetail
from app.telemetry import MAX_GPUS_PER_NODE, Node
from app.units import parse_bytes

PREFIX = "TONNAGE_AGENT_"
DEMO_GPUS = 8

_Number = TypeVar("_Number", int, float)

_EPILOG = f"""\
Each option may also be given as a variable in the environment: --state-dir as
{PREFIX}STATE_DIR, --label as {PREFIX}LABELS (k=v,k2=v2), and so on; the
command line comes first. The token itself may be in {PREFIX}TOKEN instead of
a file. A server in local mode needs no token.

exit status:
  0  ended by SIGTERM or SIGINT; --print; --once and the report is stored
  1  --once and the report is not stored: it is kept, and goes with the next run;
     or the agent failed, and its log says how
  2  an option or variable is wrong, or the state directory cannot be used
"""


class OptionError(Exception):
    """An option or a variable cannot be used. The text is one sentence that says which, and what it must be."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What the agent was told. `token` is asked before every request; `demo_gpus` is None on a real node.

    `warnings` are for the log: what was given can be used, but is hardly what was meant.
    """

    server: str
    token: Token
    node: Node
    interval_seconds: float
    processes: ProcessDetail
    state_dir: Path
    outbox_max_reports: int
    outbox_max_bytes: int
    demo_gpus: int | None
    once: bool
    print_only: bool
    log_level: str
    warnings: tuple[str, ...]


def parse(argv: Sequence[str] | None, environ: Mapping[str, str]) -> Options:
    """The options in `argv` (None: the process's own) and `environ`. Raises OptionError; `--help` exits."""
    arguments = vars(_parser().parse_args(argv))
    given = _Given(arguments, environ)
    values = {setting.name: given.value(setting) for setting in _SETTINGS}
    demo_gpus: int | None = values["demo"]
    token = _token(arguments["token_file"], environ)
    node = _node(values["node"], values["pool"], values["label"], demo=demo_gpus is not None)
    warnings = _unknown_variables(environ)
    if token() is not None and not (values["server"].startswith("https:") or is_loopback(values["server"])):
        warnings.append(f"the token goes over the network unencrypted: use https for {values['server']}")
    return Options(
        server=values["server"],
        token=token,
        node=node,
        interval_seconds=values["interval_seconds"],
        processes=values["processes"],
        state_dir=values["state_dir"] or _default_state_dir(environ, node),
        outbox_max_reports=values["outbox_max_reports"],
        outbox_max_bytes=values["outbox_max_bytes"],
        demo_gpus=demo_gpus,
        once=arguments["once"],
        print_only=arguments["print"],
        log_level=values["log_level"],
        warnings=tuple(warnings),
    )


@dataclass(frozen=True, slots=True)
class _Setting:
    """An option that takes a value: how to read it, and what it is when nobody gives it (None: nothing)."""

    name: str
    parse: Callable[[str], Any]
    default: str | None
    metavar: str
    help: str

    @property
    def flag(self) -> str:
        return f"--{self.name.replace('_', '-')}"

    @property
    def variable(self) -> str:
        return f"{PREFIX}{'LABELS' if self.name == 'label' else self.name.upper()}"


@dataclass(frozen=True, slots=True)
class _Given:
    """Where values come from: the command line, then the environment, then the default."""

    arguments: Mapping[str, Any]
    environ: Mapping[str, str]

    def value(self, setting: _Setting) -> Any:
        argument, variable = self.arguments[setting.name], self.environ.get(setting.variable, "")
        if argument is not None:
            origin, text = setting.flag, ",".join(argument) if isinstance(argument, list) else argument
        elif variable:
            origin, text = setting.variable, variable
        elif setting.default is not None:
            origin, text = setting.flag, setting.default
        else:
            return None
        try:
            return setting.parse(text)
        except ValueError as error:
            raise OptionError(f"{origin}: {error}") from error


def _server(text: str) -> str:
    try:
        url = urlsplit(text)
        usable = url.scheme in {"http", "https"} and url.hostname and url.port != 0
    except ValueError:
        usable = False
    if not usable or url.query or url.fragment or url.username is not None:
        raise ValueError(f"{text!r} is not the address of a server; write it like https://tonnage.example.org")
    return text.rstrip("/")


def _interval_seconds(text: str) -> float:
    return _number(text, float, 0.1, 3_600.0)


def _demo_gpus(text: str) -> int:
    return _number(text, int, 1, MAX_GPUS_PER_NODE)


def _outbox_max_reports(text: str) -> int:
    return _number(text, int, 1, 1_000_000)


def _number(text: str, kind: Callable[[str], _Number], least: _Number, most: _Number) -> _Number:
    try:
        value = kind(text)
    except ValueError:
        value = None
    if value is None or not least <= value <= most:
        raise ValueError(f"must be a number from {least:g} to {most:g}, not {text!r}")
    return value


def _one_of(*choices: str) -> Callable[[str], str]:
    def choose(text: str) -> str:
        if text not in choices:
            raise ValueError(f"must be {', '.join(choices[:-1])} or {choices[-1]}, not {text!r}")
        return text

    return choose


def _labels(text: str) -> dict[str, str]:
    labels = {}
    for pair in text.split(","):
        key, equals, value = pair.partition("=")
        if not equals:
            raise ValueError(f"a label is written key=value, not {pair!r}")
        labels[key.strip()] = value.strip()
    return labels


_SETTINGS = (
    _Setting("server", _server, "http://127.0.0.1:8000", "URL", "the service to report to"),
    _Setting("node", str, None, "NAME", "name of this node in the fleet (default: its host name)"),
    _Setting("pool", str, None, "POOL", "group of nodes that work is planned for"),
    _Setting("label", _labels, None, "KEY=VALUE", "a label to select this node by; may be repeated"),
    _Setting("interval_seconds", _interval_seconds, "5", "SECONDS", "time from one reading to the next, 0.1 to 3600"),
    _Setting(
        "processes",
        _one_of("named", "unnamed", "none"),
        "named",
        "DETAIL",
        "what to report of the processes on the GPUs: named, unnamed (only id and memory), or none",
    ),
    _Setting(
        "state_dir",
        Path,
        None,
        "DIR",
        "where unsent reports are kept (default: $STATE_DIRECTORY, as root /var/lib/tonnage-agent, else "
        "~/.local/state/tonnage-agent)",
    ),
    _Setting(
        "outbox_max_reports", _outbox_max_reports, "20000", "N", "most unsent reports kept; a day has 17280 at 5 s"
    ),
    _Setting("outbox_max_bytes", parse_bytes, "256MiB", "SIZE", "most bytes of unsent reports kept"),
    _Setting(
        "demo",
        _demo_gpus,
        None,
        "GPUS",
        f"play a made-up node with this many GPUs ({DEMO_GPUS} unless given); needs no GPU and no driver",
    ),
    _Setting(
        "log_level",
        _one_of("debug", "info", "warning", "error"),
        "info",
        "LEVEL",
        "least important log lines to write: debug, info, warning, error",
    ),
)


VARIABLES = (*(setting.variable for setting in _SETTINGS), f"{PREFIX}TOKEN", f"{PREFIX}TOKEN_FILE")
"""Every variable that means something to the agent."""


class _Parser(argparse.ArgumentParser):
    """argparse, but a wrong option is one sentence for the caller to say, not a page of usage and an exit."""

    def error(self, message: str) -> NoReturn:
        raise OptionError(f"{message}; see tonnage agent --help")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="tonnage agent",
        description="Read this node's GPUs every few seconds and report them to the service.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    for setting in _SETTINGS:
        text = setting.help + (f" (default: {setting.default})" if setting.default else "")
        if setting.name == "label":
            parser.add_argument(setting.flag, action="append", metavar=setting.metavar, help=text)
        elif setting.name == "demo":
            parser.add_argument(setting.flag, nargs="?", const=str(DEMO_GPUS), metavar=setting.metavar, help=text)
        else:
            parser.add_argument(setting.flag, metavar=setting.metavar, help=text)
    parser.add_argument(
        "--token-file", metavar="PATH", help="file that holds the agent's token; read anew before each use"
    )
    parser.add_argument("--once", action="store_true", help="report once and end")
    parser.add_argument(
        "--print", action="store_true", help="print reports as JSON instead of keeping and sending them"
    )
    parser.add_argument("--version", action="version", version=__version__)
    return parser


def _node(name: str | None, pool: str | None, labels: dict[str, str] | None, *, demo: bool) -> Node:
    try:
        return Node(
            name=name or socket.gethostname(), agent_version=__version__, pool=pool, labels=labels or {}, demo=demo
        )
    except ValueError as error:
        raise OptionError(f"--node, --pool or --label: {error}") from error


def _token(path_argument: str | None, environ: Mapping[str, str]) -> Token:
    text, path = environ.get(f"{PREFIX}TOKEN", ""), path_argument or environ.get(f"{PREFIX}TOKEN_FILE", "")
    if text and path and not path_argument:
        raise OptionError(f"{PREFIX}TOKEN and {PREFIX}TOKEN_FILE are both set: unset one")
    try:
        if path:
            return token_file(Path(path))
        return fixed_token(text or None)
    except ValueError as error:
        raise OptionError(f"the agent's token: {error}") from error


def _default_state_dir(environ: Mapping[str, str], node: Node) -> Path:
    if environ.get("STATE_DIRECTORY"):
        base = Path(environ["STATE_DIRECTORY"].split(":")[0])  # set by systemd for StateDirectory=
    elif environ.get("XDG_STATE_HOME"):
        base = Path(environ["XDG_STATE_HOME"]) / "tonnage-agent"
    elif os.geteuid() == 0:
        base = Path("/var/lib/tonnage-agent")
    else:
        try:
            base = Path.home() / ".local/state/tonnage-agent"
        except RuntimeError as error:
            raise OptionError("there is no home directory to keep unsent reports in: give --state-dir") from error
    return base / "demo" / node.name if node.demo else base


def _unknown_variables(environ: Mapping[str, str]) -> list[str]:
    warnings = []
    for name in sorted(environ):
        if name.startswith(PREFIX) and name not in VARIABLES:
            nearest = get_close_matches(name, VARIABLES, n=1)
            hint = f"; did you mean {nearest[0]}?" if nearest else ""
            warnings.append(f"the variable {name} means nothing to the agent{hint}")
    return warnings
