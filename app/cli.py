"""`tonnage`: one word per job. Each command imports what it needs when it is called: an agent has no server packages.

Exit status: 0 done, 1 failed, 2 wrong usage or settings. An error is one sentence on standard error.
"""

import argparse
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from app import __version__

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

    from app.settings import Settings
    from app.storage.tokens import Token

_SUMMARY = """commands:
  serve      run the service, with a private database unless a URL is given
  migrate    bring the database to the schema of this version
  token      create, list or revoke tokens
  estimate   estimate the memory of a training job, without a service
  scaling    spend a training budget best: parameters, tokens, text
  accuracy   compare estimates with published measurements
  convert    convert a checkpoint into another number format
  agent      report this node's GPUs to a service

`tonnage COMMAND --help` says more. Settings also come from TONNAGE_* variables."""


class _Failure(Exception):
    """What to say and which status to exit with."""

    def __init__(self, sentence: str, status: int) -> None:
        super().__init__(sentence)
        self.status = status


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command in `argv` (None: the process's own arguments). Returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="tonnage",
        description="Training-capacity planning.",
        epilog=_SUMMARY,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"tonnage {__version__}")
    parser.add_argument("command", choices=_COMMANDS, metavar="COMMAND")
    parser.add_argument("arguments", nargs=argparse.REMAINDER, metavar="…", help=argparse.SUPPRESS)
    chosen = parser.parse_args(argv)
    try:
        return _COMMANDS[chosen.command](chosen.arguments)
    except _Failure as failure:
        sys.stderr.write(f"tonnage {chosen.command}: {failure}\n")
        return failure.status
    except ModuleNotFoundError as missing:
        if missing.name is None or missing.name.partition(".")[0] == "app":
            raise
        extra = "agent" if chosen.command == "agent" else "server"
        sys.stderr.write(
            f"tonnage {chosen.command}: {missing.name} is not installed; install the {extra} extra: "
            f"pip install 'tonnage[{extra}]'\n"
        )
        return 2


def _serve(argv: Sequence[str]) -> int:
    parser = _parser("serve", "Run the service until SIGTERM or Ctrl-C.")
    parser.add_argument("--host", help="address to listen on (default 127.0.0.1)")
    parser.add_argument("--port", help="port to listen on (default 8000; 0 takes a free one)")
    _add_database(parser)
    options = parser.parse_args(argv)
    from app.serve import CannotServe, serve

    with _sentences():
        try:
            serve(_settings(options))
        except CannotServe as error:
            raise _Failure(str(error), 2) from error
    return 0


def _migrate(argv: Sequence[str]) -> int:
    parser = _parser("migrate", "Bring the database to the schema of this version; several may run at once.")
    _add_database(parser)
    options = parser.parse_args(argv)
    with _sentences(), _database(_settings(options)):
        pass
    return 0


def _token(argv: Sequence[str]) -> int:
    parser = _parser("token", "Create, list or revoke the tokens that requests carry.")
    actions = parser.add_subparsers(dest="action", required=True, metavar="create|list|revoke")
    create = actions.add_parser("create", help="make a token and print it; it cannot be shown again")
    create.add_argument("--name", required=True, help="whose it is; unique among the tokens in use")
    create.add_argument("--role", required=True, choices=("viewer", "planner", "admin", "agent"))
    create.add_argument("--expires-in-days", type=_days, metavar="DAYS", help="default: never")
    create.add_argument("--node", help="for role agent: the only node it may report for")
    revoke = actions.add_parser("revoke", help="make a token useless from now on")
    revoke.add_argument("token", metavar="NAME|ID")
    for action in (create, revoke, actions.add_parser("list", help="show all tokens, without their secrets")):
        _add_database(action)
    options = parser.parse_args(argv)
    if options.action == "create" and options.node is not None and options.role != "agent":
        create.error("--node is for --role agent only")
    with _sentences(), _database(_settings(options)) as session:
        _TOKEN_ACTIONS[options.action](session, options)
    return 0


def _create_token(session: "Session", options: argparse.Namespace) -> None:
    from app.storage import tokens

    now = datetime.now(UTC)
    expires_at = None if options.expires_in_days is None else now + options.expires_in_days
    secret, _ = tokens.create(
        session, name=options.name, role=options.role, expires_at=expires_at, now=now, node=options.node
    )
    session.commit()  # the secret is shown only once it is good for something
    sys.stderr.write("Keep this token; it cannot be shown again. Send it as: Authorization: Bearer <token>\n")
    sys.stdout.write(f"{secret}\n")


def _list_tokens(session: "Session", _: argparse.Namespace) -> None:
    from app.storage import tokens

    heads = ("NAME", "ROLE", "TOKEN", "STATE", "EXPIRES", "LAST USED", "NODE")
    now = datetime.now(UTC)
    rows = [heads, *(_row(token, now) for token in tokens.list_tokens(session))]
    widths = [max(len(row[column]) for row in rows) for column in range(len(heads))]
    for row in rows:
        sys.stdout.write("  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip() + "\n")


def _row(token: "Token", now: datetime) -> tuple[str, ...]:
    is_expired = token.expires_at is not None and token.expires_at <= now
    state = "revoked" if token.revoked_at is not None else "expired" if is_expired else "usable"
    shown = [f"{moment:%Y-%m-%d %H:%MZ}" if moment else "never" for moment in (token.expires_at, token.last_used_at)]
    node = (token.node or "any") if token.role == "agent" else ""
    return (token.name, token.role, f"{token.prefix}…", state, *shown, node)


def _revoke_token(session: "Session", options: argparse.Namespace) -> None:
    from app.storage import tokens

    token = tokens.revoke(session, options.token, datetime.now(UTC))
    sys.stdout.write(f"{token.name} is revoked.\n")


def _estimate(argv: Sequence[str]) -> int:
    from app import estimate_command

    parser = _parser("estimate", "")
    estimate_command.add_arguments(parser)
    return estimate_command.run(parser.parse_args(argv))


def _scaling(argv: Sequence[str]) -> int:
    from app import scaling_command

    parser = _parser("scaling", "")
    scaling_command.add_arguments(parser)
    return scaling_command.run(parser.parse_args(argv))


def _accuracy(argv: Sequence[str]) -> int:
    from app import accuracy_command

    parser = _parser("accuracy", "")
    accuracy_command.add_arguments(parser)
    return accuracy_command.run(parser.parse_args(argv))


def _convert(argv: Sequence[str]) -> int:
    from app import convert_command

    parser = _parser("convert", "")
    convert_command.add_arguments(parser)
    return convert_command.run(parser.parse_args(argv))


def _agent(argv: Sequence[str]) -> int:
    from app.agent.__main__ import main as agent

    return agent(argv)


_COMMANDS: dict[str, Callable[[Sequence[str]], int]] = {
    "serve": _serve,
    "migrate": _migrate,
    "token": _token,
    "estimate": _estimate,
    "scaling": _scaling,
    "accuracy": _accuracy,
    "convert": _convert,
    "agent": _agent,
}
_TOKEN_ACTIONS: dict[str, Callable[["Session", argparse.Namespace], None]] = {
    "create": _create_token,
    "list": _list_tokens,
    "revoke": _revoke_token,
}


def _parser(command: str, description: str) -> argparse.ArgumentParser:
    return argparse.ArgumentParser(prog=f"tonnage {command}", description=description)


def _add_database(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--data-dir", help="where the private database lies (default .data)")
    parser.add_argument("--database-url", help="use this PostgreSQL instead of a private one")


def _days(text: str) -> timedelta:
    days = float(text)
    if not 0 < days <= 36_500:
        raise argparse.ArgumentTypeError("must be more than 0 and at most 36500")
    return timedelta(days=days)


def _settings(options: argparse.Namespace) -> "Settings":
    from app.settings import Settings

    known = {name: value for name, value in vars(options).items() if name in Settings.model_fields}
    return Settings.from_environment(os.environ, **known)


@contextmanager
def _sentences() -> Iterator[None]:
    """Turn what an operator can act on into one sentence and an exit status."""
    from app.errors import TonnageError
    from app.settings import SettingsError
    from app.storage import UnusableDatabase

    try:
        yield
    except SettingsError as error:
        raise _Failure(str(error), 2) from error
    except UnusableDatabase as error:
        raise _Failure(str(error), 1) from error
    except TonnageError as error:
        raise _Failure(error.detail, 1) from error


@contextmanager
def _database(settings: "Settings") -> Iterator["Session"]:
    """A transaction on the database of these settings, migrated; a private one may be in use by a service meanwhile."""
    from app import logs
    from app.storage import db
    from app.storage.embedded import database
    from app.storage.migration import migrate

    logs.configure("warning")
    url = None if settings.database_url is None else settings.database_url.get_secret_value()
    with database(url, settings.data_dir, guest=True) as url:
        migrate(url)
        engine = db.make_engine(url, pool_size=1, application_name="tonnage-cli")
        try:
            with db.transaction(db.make_sessions(engine)) as session:
                yield session
        finally:
            engine.dispose()


if __name__ == "__main__":
    sys.exit(main())
