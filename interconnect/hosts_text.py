"""Hosts and ports as people write them."""

from __future__ import annotations

import os
import re

from superpod.interconnect.errors import InvalidValue


def host_and_port(text: str, default: int) -> tuple[str, int]:
    """ "node0:29400", "[fd00::1]:29400" or without a port → host, port. Raises InvalidValue."""
    match = re.fullmatch(r"(?:\[([^\]\s]+)\]|([^:\s\[\]]+))(?::(\d+))?", text)
    port = int(match[3] or default) if match else -1
    if not match or not 0 < port < 1 << 16:
        raise InvalidValue(f"endpoint {text!r} must be host:port, such as node0:29400 or [fd00::1]:29400")
    return match[1] or match[2], port


def endpoint_text(host: str, port: str = "") -> str:
    """The reverse, for `host_and_port`: an IPv6 address gets its brackets, and "" stays without a port."""
    if ":" in host and not host.startswith("["):
        host = f"[{host}]"
    return f"{host}:{port}" if port else host


def cards_text(text: str) -> int:
    """A host's number of cards, or a word that torchrun has for it. Raises InvalidValue.

    auto and cpu: one for each processor that this process may use. Kubeflow says auto where nobody has said more.
    """
    if text in ("auto", "cpu"):
        return len(os.sched_getaffinity(0))
    try:
        return int(text)
    except ValueError:
        raise InvalidValue("must be a whole number, such as 4, or auto or cpu: one card a processor") from None
