"""Every setting of the service: `TONNAGE_` and the field's name in capitals, from the environment.

A secret may come from a file instead: `TONNAGE_DATABASE_URL_FILE` names one whose content is the value. A variable
that no field knows stops the start, because a misspelt setting must never be ignored; `TONNAGE_AGENT_*` belongs to
the agent.

`Settings` is an argument, never a global: `create_app(settings)`. The environment is read in `from_environment` only.
"""

import ipaddress
import re
from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal, Self
from urllib.parse import urlsplit

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SecretStr,
    ValidationError,
    model_validator,
)
from pydantic_core import ErrorDetails

from app.units import GIB, KIB, MIB, TIB, parse_bytes

PREFIX = "TONNAGE_"
AGENT_PREFIX = "TONNAGE_AGENT_"
_FILE_SUFFIX = "_FILE"

LogLevel = Literal["debug", "info", "warning", "error"]


class SettingsError(Exception):
    """A setting that cannot be used. Its text is one sentence that names the variable or the option."""


def _size(value: object) -> object:
    return parse_bytes(value) if isinstance(value, str) else value


def _lower(value: object) -> object:
    return value.lower() if isinstance(value, str) else value


def _postgresql(value: SecretStr) -> SecretStr:
    if not value.get_secret_value().startswith(("postgresql://", "postgres://", "postgresql+psycopg://")):
        raise ValueError("should begin with postgresql://")
    return value


def _hub_url(value: str) -> str:
    url = value.strip().rstrip("/")
    scheme, _, rest = url.partition("://")
    host, _, path = rest.partition("/")
    is_safe = scheme == "https" or (scheme == "http" and is_loopback(urlsplit(url).hostname or ""))
    if not (is_safe and _is_host(host) and re.fullmatch(r"(?:[\w~-][\w.~-]*(?:/[\w~-][\w.~-]*)*)?", path, re.ASCII)):
        raise ValueError("should be https://host or https://host/path; http:// is for this machine only")
    return url


def _hosts(value: object) -> object:
    return tuple(host for part in value.split(",") if (host := part.strip())) if isinstance(value, str) else value


def _host(value: str) -> str:
    if not _is_host(value):
        raise ValueError("should be hosts with commas between, each host or host:port, without https:// or *")
    return value


def _is_host(text: str) -> bool:
    """Whether `text` is a name or an address, `[…]` around one of IPv6, and perhaps a port behind it."""
    found = re.fullmatch(r"(?:\[[0-9A-Fa-f:]+\]|[A-Za-z0-9-]+(?:\.[A-Za-z0-9-]+)*)(?::(\d{1,5}))?", text)
    return found is not None and 0 < int(found[1] or 1) <= 65_535


def _token(value: SecretStr) -> SecretStr:
    if not re.fullmatch(r"[!-~]+", value.get_secret_value()):
        raise ValueError("should be a token: letters, digits and signs, without spaces")
    return value


Seconds = Annotated[float, Field(gt=0, le=86_400, allow_inf_nan=False)]
Size = Annotated[int, BeforeValidator(_size), Field(ge=KIB, le=1024 * MIB)]
FileSize = Annotated[int, BeforeValidator(_size), Field(ge=KIB, le=1024 * TIB)]
HostName = Annotated[str, AfterValidator(_host)]


class Settings(BaseModel):
    """What an operator can choose. Frozen; a duration or a size carries its unit in its name."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, validate_default=True)

    host: Annotated[str, Field(min_length=1, max_length=255)] = "127.0.0.1"
    """Address to listen on. Any but a loopback address needs a token in the database before the service starts."""

    port: Annotated[int, Field(ge=0, le=65_535)] = 8000
    """TCP port to listen on; 0 takes a free one."""

    data_dir: Annotated[Path, AfterValidator(Path.absolute)] = Path(".data")
    """Directory of the private PostgreSQL server, made when missing. Unused when `database_url` is set."""

    database_url: Annotated[SecretStr, AfterValidator(_postgresql)] | None = None
    """Database to use, `postgresql://user:password@host/name`, PostgreSQL 15 or newer; without it a private one
    starts."""

    database_pool_size: Annotated[int, Field(ge=1, le=1_000)] = 20
    """Connections to the database that one process opens at most."""

    database_wait_seconds: Seconds = 5
    """How long a request waits for a connection to the database before it is answered 503."""

    database_statement_seconds: Seconds = 20
    """How long one SQL statement may run before the database stops it."""

    max_body_bytes: Size = 8 * MIB
    """Largest request body that is read, such as `8388608` or `8 MiB`; a larger one is answered 413."""

    max_tensors_bytes: FileSize = 256 * GIB
    """Largest file of tensors that `/v1/precision/tensors` reads, such as `256 GiB`; it is never held as a whole."""

    max_spool_bytes: FileSize = 16 * GIB
    """Largest tensor of such a file that is written to disk, because its scales are known only once it is read."""

    spool_dir: Annotated[Path, AfterValidator(Path.absolute)] | None = None
    """Directory on a disk for these tensors, one file each without a name, gone when it is closed; by default the
    system's for temporary files."""

    upload_idle_seconds: Seconds = 60
    """How long the upload of such a file may stand still before it is answered 400 and makes room for others."""

    max_requests_in_flight: Annotated[int, Field(ge=1, le=100_000)] = 200
    """Requests worked on at once; one more is answered 503 instead of being queued without end."""

    log_level: Annotated[LogLevel, BeforeValidator(_lower)] = "info"
    """Least important log line that is written: debug, info, warning or error."""

    drain_seconds: Annotated[float, Field(ge=0, le=3_600, allow_inf_nan=False)] = 0
    """How long the service goes on taking connections after SIGTERM, not ready, so that load balancers turn away
    first."""

    shutdown_grace_seconds: Seconds = 30
    """How long requests in flight may take to finish once no new ones are taken."""

    node_stale_seconds: Seconds = 60
    """Age of a node's last report from which on the node counts as stale."""

    node_offline_seconds: Seconds = 300
    """Age of a node's last report from which on the node counts as offline."""

    hub_url: Annotated[str, AfterValidator(_hub_url)] | None = None
    """Where to look up models that the catalogue does not have: `https://huggingface.co`, or any endpoint that speaks
    as it does. Without it no hub is ever asked."""

    hub_token: Annotated[SecretStr, AfterValidator(_token)] | None = None
    """Token for gated and private models, sent to `hub_url` alone. Whoever may ask this service then sees the shapes of
    every model that the token opens."""

    hub_timeout_seconds: Annotated[float, Field(ge=0.1, le=60, allow_inf_nan=False)] = 10
    """How long one look-up in the hub may take in all."""

    hub_max_config_bytes: Annotated[int, BeforeValidator(_size), Field(ge=KIB, le=8 * MIB)] = MIB
    """Largest `config.json` that is taken from the hub."""

    hub_allowed_hosts: Annotated[tuple[HostName, ...], BeforeValidator(_hosts)] = ()
    """Hosts that the hub may redirect to beside its own, each `host` or `host:port`, with commas between; by default
    none."""

    hub_fresh_seconds: Annotated[float, Field(ge=0, le=2_592_000, allow_inf_nan=False)] = 3_600
    """How long the commit that a branch of a model is at counts as known, before the hub is asked again."""

    @model_validator(mode="before")
    @classmethod
    def _no_password_in_hub_url(cls, given: Any) -> Any:
        if isinstance(given, dict) and "@" in str(given.get("hub_url", "")):  # before any sentence could show it
            raise ValueError(f"{PREFIX}HUB_URL should hold no user or password; use {PREFIX}HUB_TOKEN")
        return given

    @model_validator(mode="after")
    def _hub_is_named(self) -> Self:
        if self.hub_url is None and (self.hub_token is not None or self.hub_allowed_hosts):
            raise ValueError(f"{PREFIX}HUB_TOKEN and {PREFIX}HUB_ALLOWED_HOSTS need {PREFIX}HUB_URL")
        return self

    @model_validator(mode="after")
    def _stale_before_offline(self) -> Self:
        if self.node_offline_seconds <= self.node_stale_seconds:
            raise ValueError(f"{PREFIX}NODE_OFFLINE_SECONDS should be greater than {PREFIX}NODE_STALE_SECONDS")
        return self

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can reach the address listened on."""
        return is_loopback(self.host)

    @classmethod
    def from_environment(cls, environ: Mapping[str, str], **options: object) -> Self:
        """The settings in `environ`, with command-line `options` before them; an option that is `None` was not given.

        Raises SettingsError for an unknown variable, a value that cannot be used, a secret given twice, or a file that
        cannot be read.
        """
        given = {name: value for name, value in options.items() if value is not None}
        values = {**_read(environ, cls.model_fields.keys(), _secrets(cls)), **given}
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            raise SettingsError(_sentence(error.errors()[0], given, _secrets(cls))) from None


def is_loopback(host: str) -> bool:
    """Whether `host`, a name or an address, means this machine and nobody else."""
    name = host.strip("[]").lower().removesuffix(".")
    if name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


def _secrets(settings: type[Settings]) -> frozenset[str]:
    return frozenset(name for name, field in settings.model_fields.items() if "SecretStr" in str(field.annotation))


def _read(environ: Mapping[str, str], fields: Any, secrets: frozenset[str]) -> dict[str, str]:
    known = {f"{PREFIX}{name.upper()}": name for name in fields}
    files = {f"{PREFIX}{name.upper()}{_FILE_SUFFIX}": name for name in secrets}
    values: dict[str, str] = {}
    for variable in sorted(environ):
        if not variable.startswith(PREFIX) or variable.startswith(AGENT_PREFIX):
            continue
        if variable in known:
            values[known[variable]] = environ[variable]
        elif variable not in files:
            names = [other.removeprefix(PREFIX) for other in sorted([*known, *files])]
            nearest = get_close_matches(variable.removeprefix(PREFIX), names, n=1)
            hint = f"did you mean {PREFIX}{nearest[0]}?" if nearest else f"known, after {PREFIX}: {', '.join(names)}"
            raise SettingsError(f"{variable} is not a setting; {hint}")
    for variable, name in files.items():
        if variable in environ:
            if name in values:
                raise SettingsError(f"{variable} and {variable.removesuffix(_FILE_SUFFIX)} are both set; keep one")
            values[name] = _content(variable, environ[variable])
    return values


def _content(variable: str, path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8").strip()
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else "it is not a text file"
        raise SettingsError(f"{variable} names {path!r}, which cannot be read: {reason}") from None


def _sentence(error: ErrorDetails, given: Mapping[str, object], secrets: frozenset[str]) -> str:
    reason = error["msg"].removeprefix("Value error, ").removeprefix("Input ")
    if not error["loc"]:
        return reason
    name = str(error["loc"][0])
    place = f"--{name.replace('_', '-')}" if name in given else f"{PREFIX}{name.upper()}"
    return f"{place} {reason}" if name in secrets else f"{place} {reason}, not {str(error['input'])!r}"
