"""The agent's end of its zygote: starts it, gives it orders, ends it."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from superpod.interconnect.env import HostPlace, Place, worker_environment, zygote_environment
from superpod.launcher.channel import Channel, Order
from superpod.launcher.processes import python_command
from superpod.launcher.share import Share
from superpod.launcher.tunnel import loopback_listener
from superpod.launcher.zygote import BOOT

_DEADLINE = 10.0  # seconds for one order; it reads all the time, so longer means that it is stopped or dead
_LAST_WAIT = 5.0  # seconds for a zygote that was told to end


class ZygoteProcess:
    """Attributes: pid; store_port: where on this host's loopback torch's store is to be found."""

    def __init__(self, share: Share, directory: Path, output: int, store_port: int | None = None) -> None:
        """Start it.

        Args:
            output: the descriptor that is to be its stdout and stderr.
            store_port: None: it hosts torch's store itself, at a port of its own.
        """
        self._share, self._directory = share, directory
        self._channel, theirs = Channel.pair(_DEADLINE)
        with contextlib.ExitStack() as opened:
            opened.callback(theirs.close)
            listener: socket.socket | None = None
            if store_port is None:
                listener = opened.enter_context(loopback_listener())
                store_port = listener.getsockname()[1]
            self.store_port: int = store_port
            self._start(self._order(theirs.fileno(), listener), output)
        self.pid = self._process.pid

    def _order(self, channel: int, listener: socket.socket | None) -> Order:
        share = self._share
        return Order(
            directory=str(self._directory),
            kind=share.kind,
            target=share.target,
            args=list(share.args),
            start_method=share.start_method,
            channel=channel,
            listener=-1 if listener is None else listener.fileno(),
            agent=os.getpid(),
            preload=list(share.preload),
            auto_preload=share.auto_preload,
            bind_to=share.bind_to,
        )

    def _start(self, order: Order, output: int) -> None:
        with open(order.in_memory_file(), "rb") as orders:
            self._process = subprocess.Popen(
                python_command("-c", BOOT),
                stdin=orders,
                stdout=output,
                stderr=output,
                cwd=self._share.workdir or None,
                env=zygote_environment(self.card_environment(self._share.ranks.start)),
                pass_fds=[fd for fd in (order.channel, order.listener) if fd >= 0],
                start_new_session=True,  # a Ctrl-C at the terminal is the launcher's alone
            )

    def card_environment(self, rank: int) -> dict[str, str]:
        share = self._share
        place = Place(rank, share.world_size, rank - share.ranks.start, len(share.ranks))
        environment = worker_environment(
            place,
            HostPlace(share.number, len(share.sizes), share.job, share.address, share.secret),
            directory=self._directory,
            store=store_endpoint(self._directory),
            master_port=self.store_port,
            selection=share.selection,
        )
        return {**environment, **share.more}

    def fileno(self) -> int:
        return self._channel.fileno()

    def receive(self) -> dict[str, Any] | None:
        """Its next message, or None when it has gone."""
        received = self._channel.receive()
        return received[0] if received else None

    def start_card(self, rank: int, streams: Sequence[int]) -> None:
        """`streams`: what is to be the card's stdout and stderr."""
        self._send({"do": "start", "rank": rank, "environment": self.card_environment(rank)}, streams)

    def signal_cards(self, signum: int) -> None:
        self._send({"do": "signal", "signum": signum})

    def end(self) -> None:
        """Have it kill every descendant and go; it says "ended" then."""
        self._send({"do": "end"})

    def _send(self, message: dict[str, Any], fds: Sequence[int] = ()) -> None:
        with contextlib.suppress(OSError):  # it has gone, which `receive` tells
            self._channel.send(message, fds)

    def terminate(self) -> None:
        """While it loads modules it does not listen to orders, but to SIGTERM: the same as `end`."""
        self._process.terminate()

    def kill(self) -> None:
        self._process.kill()

    def wait(self) -> int:
        """Its exit code, negative for a signal; killed if it does not go."""
        try:
            return self._process.wait(_LAST_WAIT)
        except subprocess.TimeoutExpired:
            self._process.kill()
            return self._process.wait()

    def close(self) -> None:
        self._channel.close()


def store_endpoint(directory: Path) -> str:
    """Where the launcher's own key-value store listens."""
    return f"ipc://{directory}/store"
