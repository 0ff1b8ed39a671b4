"""Sizes and durations as people write them, and back."""

from __future__ import annotations

import re

from superpod.interconnect.errors import InvalidValue

_SIZE = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
_RATE = {"": 1.0, "K": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "P": 1e15}
_SECONDS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0, "": 1.0}

MOST_BYTES = 1 << 60  # limits of the system are numbers of 63 bits, and something is added to it
MOST_SECONDS = 1e6  # poll and epoll count milliseconds in 31 bits: 25 days
MOST_RATE = 1e21  # B/s


def parse_size(text: str) -> int:
    """Bytes from "64", "64K", "64KiB", "1.5M": powers of 1024, up to MOST_BYTES. Raises InvalidValue."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]?)(?:i?B)?\s*", text, re.IGNORECASE)
    if match is None:
        raise InvalidValue(f"size {text!r} must be a number with K, M, G or T behind it, such as 64M")
    nbytes = float(match[1]) * _SIZE[match[2].upper()]
    if nbytes > MOST_BYTES:
        raise InvalidValue(f"size {text!r} must be at most {MOST_BYTES >> 40}T; take fewer bytes")
    return int(nbytes)


def parse_seconds(text: str) -> float:
    """Seconds from "2.1us", "300ms", "10", "5m", up to MOST_SECONDS. Raises InvalidValue."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?(?:e-?\d+)?)\s*(ns|us|µs|ms|s|m|h|)\s*", text)
    if match is None:
        raise InvalidValue(f"duration {text!r} must be a number with ns, us, ms, s, m or h behind it, such as 2.1us")
    seconds = float(match[1]) * _SECONDS[match[2]]
    if seconds > MOST_SECONDS:
        raise InvalidValue(f"duration {text!r} must be at most {MOST_SECONDS:.0f} s, eleven days; take less")
    return seconds


def size_text(nbytes: int) -> str:
    """4096 → "4 KiB"; what is no round number keeps one decimal."""
    value, unit = float(nbytes), "B"
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if value < 1023.95 or unit == "TiB":  # what one decimal would show as 1024.0 is 1.0 of the next unit
            break
        value /= 1024
    return f"{value:.0f} {unit}" if value == int(value) else f"{value:.1f} {unit}"


def seconds_text(seconds: float) -> str:
    """0.0000021 → "2.1 µs": three digits, whole seconds from 100 on."""
    for scale, unit in ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs"), (1e-9, "ns")):
        value = seconds / scale
        if value >= 0.9995 or unit == "ns":  # what three digits would show as 1000 is 1 of the next unit
            break
    return f"{value:.0f} {unit}" if value >= 100 else f"{value:.3g} {unit}"


def parse_rate(text: str) -> float:
    """Bytes per second from "56GB/s" or "112 Gb/s": powers of 1000, B bytes and b bits; up to MOST_RATE.

    Raises InvalidValue.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?(?:e\d+)?)\s*([kKMGTP]?)([Bb])/s\s*", text)
    if match is None:
        raise InvalidValue(f"rate {text!r} must be a number above 0 with GB/s (bytes) or Gb/s (bits), such as 56GB/s")
    rate = float(match[1]) * _RATE[match[2].upper()] / (8 if match[3] == "b" else 1)
    if rate > MOST_RATE:
        raise InvalidValue(f"rate {text!r} must be at most {MOST_RATE / 1e15:.0f}PB/s; take less")
    return rate


def rate_text(bytes_per_s: float) -> str:
    """56e9 → "56 GB/s": four digits that matter."""
    for prefix in ("P", "T", "G", "M", "K", ""):
        if bytes_per_s >= _RATE[prefix] or not prefix:
            break
    return f"{bytes_per_s / _RATE[prefix]:.4g} {prefix.replace('K', 'k')}B/s"
