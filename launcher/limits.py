"""What the system allows a launcher: open files."""

from __future__ import annotations

import resource

from superpod.interconnect.errors import InvalidValue

_FILES_EACH = 7  # a card's pipes, log files, flight record and connections to the store; rounded up
_FILES_FAR = 4  # for a card of another host: log files and its connection to torch's store; rounded up
_FILES_OWN = 256


def allow_files(local: int, world_size: int) -> None:
    """Raise the soft limit of open files as far as the job needs. Raises InvalidValue when the hard one forbids it.

    `local`: cards on this host, out of `world_size`.
    """
    needed = _FILES_EACH * local + _FILES_FAR * (world_size - local) + _FILES_OWN
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < needed:
        cards = f"nproc_per_node={local}" + (f" of {world_size}" if local < world_size else "")
        raise InvalidValue(
            f"{cards} needs {needed} open files, and the hard limit is {hard}: "
            "raise it (ulimit -Hn) or start fewer cards"
        )
    if soft != resource.RLIM_INFINITY and soft < needed:
        resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))
