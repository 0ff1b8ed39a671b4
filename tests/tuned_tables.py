"""Tuned tables for tests, as superpod-bench tune writes them."""

from __future__ import annotations

import json

from superpod.collectives import tuning

CASE = {"link": "shm", "collective": "all_reduce", "fixed_order": False, "ranks": 64, "nbytes": 1 << 20}


def write(path, *rules, measured=(), **head):
    """A table with `rules`, each the changes to CASE; `head` replaces what stands above them. Returns the path."""
    tuning.write(path, {}, [{**CASE, **rule} for rule in rules], list(measured))
    if head:
        changed = json.loads(path.read_text()) | head
        path.write_text(json.dumps(changed))
    return path


def everywhere(path, algorithm):
    """A table by which all_reduce goes by `algorithm`, whatever the link."""
    return write(path, *({"link": link, "algorithm": algorithm} for link in ("shm", "zmq")))
