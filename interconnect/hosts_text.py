"""Hosts and ports as people write them."""

from __future__ import annotations

import re

from superpod.interconnect.errors import InvalidValue


def host_and_port(text: str, default: int) -> tuple[str, int]:
    """ "node0:29400", "[fd00::1]:29400" or without a port → host, port. Raises InvalidValue."""
    match = re.fullmatch(r"(?:\[([^\]\s]+)\]|([^:\s\[\]]+))(?::(\d+))?", text)
    port = int(match[3] or default) if match else -1
    if not match or not 0 < port < 1 << 16:
        raise InvalidValue(f"endpoint {text!r} must be host:port, such as node0:29400 or [fd00::1]:29400")
    return match[1] or match[2], port
