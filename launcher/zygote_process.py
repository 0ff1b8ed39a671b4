"""The agent's end of its zygote: starts it, gives it orders, ends it."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from superpod.interconnect.env import Place, worker_environment, zygote_environment
from superpod.interconnect.errors import InvalidValue
from superpod.launcher.channel import Channel, Order
from superpod.launcher.job import JobSpec
from superpod.launcher.processes import python_command
from superpod.launcher.zygote import BOOT

_BACKLOG = 4096  # cards that knock at torch's store before it is hosted
_DEADLINE = 10.0  # seconds for one order; it reads all the time, so longer means that it is stopped or dead
_LAST_WAIT = 5.0  # seconds for a zygote that was told to end


class ZygoteProcess:
    def __init__(self, spec: JobSpec, directory: Path, output: int) -> None:
        """Start it. `output`: the descriptor that is to be its stdout and stderr."""
        self._spec, self._directory = spec, directory
        self._channel, theirs = Channel.pair(_DEADLINE)
        with contextlib.closing(theirs), _store_listener() as listener:
            self._port = listener.getsockname()[1]
            order = Order(
                directory=str(directory),
                kind=spec.kind,
                target=spec.target,
                args=list(spec.args),
                start_method=spec.start_method,
                channel=theirs.fileno(),
                listener=listener.fileno(),
                agent=os.getpid(),
                preload=list(spec.preload),
                auto_preload=spec.auto_preload,
            )
            with open(order.in_memory_file(), "rb") as orders:
                self._process = subprocess.Popen(
                    python_command("-c", BOOT),
                    stdin=orders,
                    stdout=output,
                    stderr=output,
                    env=zygote_environment(self.card_environment(0)),
                    pass_fds=(order.channel, order.listener),
                    start_new_session=True,  # a Ctrl-C at the terminal is the launcher's alone
                )
        self.pid = self._process.pid

    def card_environment(self, rank: int) -> dict[str, str]:
        world_size = self._spec.world_size
        return worker_environment(
            Place(rank, world_size, rank, world_size),
            directory=self._directory,
            store=store_endpoint(self._directory),
            master_port=self._port,
        )

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


def _store_listener() -> socket.socket:
    try:
        return socket.create_server(("127.0.0.1", 0), backlog=_BACKLOG)
    except OSError as error:
        raise InvalidValue(
            f"address 127.0.0.1 must be there for torch's store, but: {error.strerror}; bring up the loopback device"
        ) from error
