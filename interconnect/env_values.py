"""How the values of environment variables are read: each refusal names the variable, the value and the rule."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeVar

from superpod.interconnect.errors import InvalidValue

T = TypeVar("T")

MOST_TIME_SCALE = 1e9  # a nanosecond takes a second


def read(env: Mapping[str, str], name: str, parse: Callable[[str], T], default: T | None) -> T:
    """What `parse` makes of a variable; `default` when it is unset or empty. Raises InvalidValue."""
    text = env.get(name, "")
    if not text:
        return default  # type: ignore[return-value]
    try:
        return parse(text)
    except ValueError as error:
        raise InvalidValue(f"{name}={text!r}: {error}") from error


def whole(text: str) -> int:
    """A whole number. Raises InvalidValue."""
    try:
        return int(text)
    except ValueError:
        raise InvalidValue("must be a whole number, such as 4") from None


def scale(text: str) -> float:
    """A time scale. Raises InvalidValue."""
    try:
        number = float(text)
    except ValueError:
        number = -1.0
    if not 0 <= number <= MOST_TIME_SCALE:
        raise InvalidValue(f"must be a number, 0 (off) or more, at most {MOST_TIME_SCALE:.0f}, such as 1000")
    return number


def one_of(allowed: tuple[str, ...]) -> Callable[[str], str]:
    """One of these words. The function returned raises InvalidValue."""

    def check(text: str) -> str:
        if text not in allowed:
            raise InvalidValue(f"must be one of {', '.join(allowed)}")
        return text

    return check
