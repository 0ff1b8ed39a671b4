"""What a communicator is beside its collectives: messages, how calls are issued, its end."""

from __future__ import annotations

from typing import Any, Self

import numpy as np

from superpod.collectives.arrays import Array, checked, flat_view, is_rank, label, lies_flat, writable
from superpod.collectives.engine import Engine
from superpod.collectives.flat import checked_seconds
from superpod.collectives.operations import Operation
from superpod.collectives.runtime import Runtime
from superpod.collectives.select import Choice
from superpod.interconnect.errors import InvalidValue

WORLD = "world"


class CommunicatorBase:
    """A group of cards without its collectives; see Communicator."""

    def __init__(self, runtime: Runtime, engine: Engine) -> None:
        """Use `init`, `connect`, `in_memory` or `Communicator.group`."""
        self._runtime = runtime
        self._engine, self._expresses, self._messages = engine, engine.expresses, engine.messages
        self._groups = 0
        self.rank = engine.rank
        self.world_size = engine.world_size

    @property
    def link(self) -> str:
        """The name of the link that carries the payload."""
        return self._runtime.mesh.link.name

    @property
    def last(self) -> Choice | None:
        """The algorithm of this card's last collective, and why it was chosen."""
        return self._engine.last

    def __repr__(self) -> str:
        return f"<Communicator {self._engine.name}: rank {self.rank} of {self.world_size}, link {self.link}>"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def send(
        self, array: Array, peer: int, tag: int = 0, *, async_op: bool = False, timeout: float | None = None
    ) -> Any:
        """Send `array` to `peer`, who must `recv` as many elements of that dtype with the same tag (0 to 2^31 − 1).

        Returns once the array may be changed; that the peer has received it is not known then.
        """
        key, form = None, None
        if not async_op and timeout is None and type(array) is np.ndarray and type(peer) is type(tag) is int:
            form = self._messages.form(key := (peer, tag, array.size, array.dtype))
            if form is not None and self._messages.send_now(form, array):
                return None
        source, seconds = flat_view(checked(array)).view(np.uint8), checked_seconds(timeout)
        form = form or self._messages.new_form(key, self._peer(peer), tag, label(array), array.nbytes)
        work = self._messages.send(form, source, seconds)
        return work if async_op else work.wait()

    def recv(
        self, array: Array, peer: int, tag: int = 0, *, async_op: bool = False, timeout: float | None = None
    ) -> Any:
        """Receive in `array` (contiguous) what `peer` sends with `tag`; messages of a peer and tag keep their order."""
        key, form = None, None
        if not async_op and timeout is None and lies_flat(array) and type(peer) is type(tag) is int:
            form = self._messages.form(key := (peer, tag, array.size, array.dtype))
            if form is not None and self._messages.recv_now(form, array):
                return array
        if not writable(array).flags.c_contiguous:
            raise InvalidValue(f"array with strides {array.strides} is not contiguous; receive into a contiguous one")
        into, seconds = array.reshape(-1).view(np.uint8), checked_seconds(timeout)
        form = form or self._messages.new_form(key, self._peer(peer), tag, label(array), array.nbytes)
        work = self._messages.recv(form, into, seconds, lambda: array)
        return work if async_op else work.wait()

    def close(self) -> None:
        """Leave the group; closing the first communicator of a process ends its mesh, with a farewell to the peers."""
        last = self._engine.name == WORLD
        self._engine.close(job=last)
        if last:
            self._runtime.close()

    def _keep(self, key: tuple[Any, ...] | None, op: Operation | None = None) -> None:
        """After a call: let those that have the same key go the short way."""
        if key is not None:
            self._engine.keep(key, op)

    def _issue(self, what: str, action: Any, async_op: bool) -> Any:
        return self._engine.issue(what, action, async_op=async_op)

    def _root(self, root: int) -> int:
        if not is_rank(root, self.world_size):
            raise InvalidValue(f"root={root!r} must be a rank of the group: 0 to {self.world_size - 1}")
        return int(root)

    def _peer(self, peer: int, itself: bool = False) -> int:
        if not is_rank(peer, self.world_size) or (peer == self.rank and not itself):
            others = f"0 to {self.world_size - 1}" + ("" if itself else f" but this card's own {self.rank}")
            raise InvalidValue(f"rank {peer!r} must be a rank of the group: {others}")
        return int(peer)
