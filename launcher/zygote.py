"""The fork server of one host, and its guardian: the parent of every card.

It imports what the target needs once, has no thread and no ZeroMQ context, and forks a card whenever the agent asks.
It does what only a parent can do:

- it adopts orphans (PR_SET_CHILD_SUBREAPER): a card's own children, whose parent has died, become its children, so it
  can find and end them;
- it reaps the cards, and so is the first to know how each ended;
- it survives the agent: when the agent's line breaks, it kills every descendant and removes the job's directory. The
  agent itself could not, for SIGKILL ends it without a word. While modules load, a SIGTERM sent by the kernel
  (PR_SET_PDEATHSIG) tells it the same.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import sys
import time
import warnings
import weakref
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import CodeType
from typing import Any, NoReturn

from superpod.launcher import fork, preload, worker
from superpod.launcher.binding import bind_card
from superpod.launcher.channel import Channel, Order
from superpod.launcher.directory import remove_directory
from superpod.launcher.job import compile_script
from superpod.launcher.processes import (
    adopt_orphans,
    die_with_parent,
    kill_children,
    python_command,
    reap,
    set_process_name,
    signal_group,
)
from superpod.launcher.zygote_memory import settle

BOOT = (
    "import sys; startup = frozenset(sys.modules); sys.flags.safe_path or sys.path.pop(0); "
    "from superpod.launcher.zygote import main; main(startup)"
)
_LAST_WAIT = 5.0  # seconds for killed processes to be gone
_ATTEMPTS = 2  # to load what the target imports; if modules were unfit each time, each card imports for itself
_STORE = -1  # in place of a rank: the process that hosts torch's store


def main(startup: frozenset[str]) -> NoReturn:
    """A zygote's life; in a forked card, the card's. `startup`: the modules that Python had loaded by itself."""
    order = Order.read(0)
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 0)  # cards read nothing: n of them cannot share a terminal
    os.close(null)
    zygote = Zygote(order)
    code = zygote.prepare(startup)
    zygote.serve()
    if zygote.is_card:
        worker.run(order.kind, order.target, order.args, code)
    os._exit(0)


class Zygote:
    """Attributes: is_card: whether this process is a forked card, no zygote any more."""

    def __init__(self, order: Order) -> None:
        self._order = order
        self._pid = os.getpid()
        self._channel = Channel.inherited(order.channel)
        self._listener = socket.socket(fileno=order.listener) if order.listener >= 0 else None
        self._cards: dict[int, int] = {}  # pid → rank
        self._over = False
        self.is_card = False
        set_process_name("superpod-zygote")
        adopt_orphans()
        self._wake_reader, self._wake_writer = socket.socketpair()
        self._wake_reader.setblocking(False)
        self._wake_writer.setblocking(False)
        signal.set_wakeup_fd(self._wake_writer.fileno(), warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda signum, frame: None)  # for the wake-up
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, self._on_abandoned)
        die_with_parent(order.agent, signal.SIGTERM)
        self._poll = select.poll()
        self._handlers: dict[int, Callable[[], None]] = {
            self._channel.fileno(): self._obey,
            self._wake_reader.fileno(): self._report_ends,
        }
        if self._listener is not None:
            self._handlers[self._listener.fileno()] = self._host_store

    def prepare(self, startup: frozenset[str]) -> CodeType | None:
        """Import what the cards need and make it cheap to share; returns the compiled script."""
        order, code = self._order, None
        if order.start_method == "fork" and order.kind != "program":
            self._preload()
            preload.forget_shadowed(preload.home_of(order.target, module=order.kind == "module"), startup)
            if order.kind == "script":
                code = _compile_quietly(order.target)
            for finalizer in list(getattr(weakref.finalize, "_registry", ())):
                finalizer.atexit = False  # what it cleans up is shared by all cards; and torch's cost 40 ms a card
        settle()
        self._tell({"event": "ready"})
        return code

    def _preload(self) -> None:
        order, module = self._order, self._order.kind == "module"
        sys.argv = [order.target, *order.args]  # what a module that looks at them is to see
        sys.path.insert(0, preload.home_of(order.target, module=module))  # --preload may name the user's own modules
        asked_for = preload.load(name for name in order.preload if name not in order.skip)
        sys.path.pop(0)
        for name, error in asked_for.failed.items():
            self._tell({"event": "warning", "text": f"--preload {name} is left to each card: {error}"})
        found = preload.plan(order.target, module=module) if order.auto_preload and order.attempt < _ATTEMPTS else []
        refused = asked_for.refused | preload.load(name for name in found if name not in order.skip).refused
        for name, why in refused.items():
            self._tell({"event": "warning", "text": f"each card imports {name} by itself, for {why}"})
        if refused:
            self._start_again(replace(order, skip=[*order.skip, *refused], attempt=order.attempt + 1))

    def _start_again(self, order: Order) -> NoReturn:
        """A fresh interpreter in this very process: what was imported cannot be taken back."""
        os.dup2(order.in_memory_file(), 0)
        os.set_inheritable(order.channel, True)
        if order.listener >= 0:
            os.set_inheritable(order.listener, True)
        os.execv(sys.executable, python_command("-c", BOOT))

    def serve(self) -> None:
        """Do what the agent asks until it ends the job, or until this process is a card."""
        for fd in self._handlers:
            self._poll.register(fd, select.POLLIN)
        while True:
            for fd, _ in self._poll.poll():
                self._handlers[fd]()
                if self.is_card or self._over:
                    return

    def _obey(self) -> None:
        received = self._channel.receive()
        if received is None:
            self._abandoned()
        message, fds = received
        match message["do"]:
            case "start":
                self._start_card(message["rank"], message["environment"], fds)
            case "signal":
                for pid, rank in self._cards.items():
                    if rank != _STORE:  # cards may need it while they end
                        signal_group(pid, message["signum"])
            case "end":
                self._report_ends(kill_children(_LAST_WAIT))
                self._tell({"event": "ended"})
                self._over = True

    def _start_card(self, rank: int, environment: dict[str, str], fds: list[int]) -> None:
        if self._fork(rank, f"superpod-{rank}"):
            fork.connect_streams(*fds)
            os.environ.update(environment)
            bind_card(self._order.bind_to)
            if self._order.kind == "program":
                fork.exec_program(self._order.target, self._order.args)
            if self._order.start_method == "exec":
                fork.exec_interpreter(self._order.kind, self._order.target, self._order.args)
            fork.renew_randomness()
            self.is_card = True
            return
        for fd in fds:
            os.close(fd)

    def _host_store(self) -> None:
        """The first card knocks at torch's store: have a process of its own host it, for a store has threads."""
        assert self._listener is not None
        self._poll.unregister(self._listener)
        if self._fork(_STORE, "superpod-store"):
            os.environ["RES_OPTIONS"] = "timeout:1 attempts:1"  # it asks for clients' names, and all wait meanwhile
            from torch.distributed import TCPStore  # type: ignore[attr-defined]  # exported, but not declared so

            host, port = self._listener.getsockname()
            store = TCPStore(
                host, port, is_master=True, wait_for_workers=False, master_listen_fd=self._listener.detach()
            )
            while store is not None:
                signal.pause()
        self._listener.close()
        self._listener = None

    def _fork(self, rank: int, name: str) -> bool:
        """Fork and tell the agent. Returns whether this is the new process."""
        try:
            pid = os.fork()
        except OSError as error:
            text = f"process {name} cannot be started: {error.strerror}"
            self._tell({"event": "failed", "rank": rank, "text": text})
            return False
        if pid == 0:
            fork.leave_parent(self._pid, name)
            for line in (self._channel, self._wake_reader, self._wake_writer):
                line.close()
            if rank != _STORE and self._listener is not None:
                self._listener.close()
            return True
        self._cards[pid] = rank
        self._tell({"event": "started", "rank": rank, "pid": pid})
        return False

    def _report_ends(self, ended: dict[int, int] | None = None) -> None:
        """Tell the agent which cards have ended; other descendants are nobody's concern."""
        with contextlib.suppress(BlockingIOError):
            self._wake_reader.recv(4096)
        for pid, status in (reap() if ended is None else ended).items():
            rank = self._cards.pop(pid, None)
            if rank is not None:
                code = os.waitstatus_to_exitcode(status)
                self._tell({"event": "exited", "rank": rank, "code": code, "time": time.time()})

    def _tell(self, message: dict[str, Any]) -> None:
        try:
            self._channel.send(message)
        except OSError:
            self._abandoned()

    def _on_abandoned(self, signum: int, frame: Any) -> None:
        if os.getpid() != self._pid:
            os._exit(128 + signum)  # a card that has not yet set its own answer to the signal
        self._abandoned()

    def _abandoned(self) -> NoReturn:
        """The agent has gone without a word: leave nothing of the job behind."""
        kill_children(_LAST_WAIT)
        remove_directory(Path(self._order.directory))
        os._exit(1)


def _compile_quietly(script: str) -> CodeType | None:
    """The launcher compiled it, too, and has shown the warnings; what fails now the cards show themselves."""
    with contextlib.suppress(SyntaxError, OSError, ValueError), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return compile_script(script)
    return None
