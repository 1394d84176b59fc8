"""The agent's bearer token: from the environment once, or from a file that may be replaced while the agent runs."""

import re
from collections.abc import Callable
from pathlib import Path

Token = Callable[[], str | None]
"""Gives the token as it is now, or None where there is none. Raises ValueError when its file has become unusable."""


def fixed_token(text: str | None) -> Token:
    """The token `text`, or none. Raises ValueError when it cannot be one."""
    token = None if text is None else _checked(text)
    return lambda: token


def token_file(path: Path) -> Token:
    """The token in the file `path`, read anew each time. Raises ValueError, also now, when the file holds none."""

    def read() -> str:
        try:
            return _checked(path.read_text(encoding="ascii").strip())
        except OSError as error:
            raise ValueError(f"{path} cannot be read: {error.strerror}") from error
        except ValueError as error:
            raise ValueError(f"{path} does not hold a token: one word of ASCII characters is expected") from error

    read()
    return read


def _checked(token: str) -> str:
    if re.fullmatch(r"[!-~]+", token) is None:
        raise ValueError("a token is one word of ASCII characters")
    return token
