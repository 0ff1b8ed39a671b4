# mypy: disable-error-code="override"
# torch's stubs overload what torch itself calls in one way
"""What a process group of torch's is beside its collectives: names, limits, messages, how calls are issued."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor

from superpod.collectives.engine import Engine
from superpod.collectives.flat import Options
from superpod.collectives.messages import Form
from superpod.collectives.operations import Operation
from superpod.collectives.torch_backend_express import Short, issued, run_short
from superpod.collectives.torch_backend_monitored import monitored_barrier
from superpod.collectives.torch_backend_options import GROUPS_OWN, limits
from superpod.collectives.torch_backend_tensors import Bytes, check, label, source
from superpod.collectives.torch_backend_work import ENDED, Block, JointWork, TorchWork
from superpod.interconnect.errors import InvalidValue, RemoteError


class Card(Protocol):
    """What a group needs of this process's part in the job."""

    def release(self, engine: Engine) -> None:
        """The group is done with its engine."""

    def split(self, parent: Engine, ranks: Sequence[int], name: str, seconds: float, store: Any) -> GroupBase:
        """A new group of some of the parent's ranks, of which this card is one."""


@dataclass
class GroupOptions:
    """What torch keeps for a group that is made from this one."""

    _timeout: timedelta
    backend: str = "superpod"


class GroupBase(dist.ProcessGroup):
    """A group of ranks without its collectives. Arguments as in torch's ProcessGroup."""

    supports_splitting = True
    supports_coalescing = True
    supports_time_estimate = False
    supports_shrinking = False

    def __init__(self, engine: Engine, card: Card, store: Any) -> None:
        """`store`: the group's own part of the store in which its ranks have met."""
        super().__init__(engine.rank, engine.world_size)  # type: ignore[call-arg]  # the stub knows torch's own only
        self._engine = engine
        self._card = card
        self._store = store
        self._name = self._desc = engine.name
        self._monitored = self._split_count = self._issued = 0
        self._block: Block | None = None
        self._block_lock = threading.Lock()

    # Messages

    def send(self, tensors: list[Tensor], dst: int, tag: int = 0) -> TorchWork:
        tensor, work, messages = only(tensors), None, self._engine.messages
        check(tensor)
        data, form = source(tensor), self._form(tensor, dst, tag)
        if not messages.send_now(form, data):
            work = messages.send(form, data, None)
        return self._under_way(TorchWork(work, tensors))

    def recv(self, tensors: list[Tensor], src: int, tag: int = 0) -> TorchWork:
        target, form = self._target(tensors), self._form(only(tensors), src, tag)

        def finish() -> int:
            target.close()
            return src

        return self._under_way(TorchWork(self._engine.messages.recv(form, target.data, None, finish), tensors))

    def recv_anysource(self, tensors: list[Tensor], tag: int = 0) -> TorchWork:
        """Receive what anybody in the group sends first; the work's `source_rank` tells who it was."""
        target = self._target(tensors)

        def finish(peer: int) -> int:
            target.close()
            return peer

        work = self._engine.messages.recv_any(target.data, tag, label(only(tensors)), finish)
        return self._under_way(TorchWork(work, tensors))

    def _target(self, tensors: list[Tensor]) -> Bytes:
        check(tensor := only(tensors))
        return Bytes(tensor, read=False)

    def _form(self, tensor: Tensor, peer: int, tag: int) -> Form:
        key, messages = (peer, tag, tensor.dtype, tensor.numel()), self._engine.messages
        if (form := messages.form(key)) is None:
            form = messages.new_form(key, self._peer(peer), tag, label(tensor), tensor.numel() * tensor.element_size())
        return form

    def _peer(self, rank: int) -> int:
        n, own = self._engine.world_size, self._engine.rank
        if not 0 <= rank < n or rank == own:
            raise InvalidValue(f"rank {rank} must be a rank of the group: 0 to {n - 1} but this card's own {own}")
        return rank

    # What torch asks of a group

    def setGroupName(self, name: str) -> None:  # noqa: N802  torch's name
        self._name = name

    def getGroupName(self) -> str:  # noqa: N802  torch's name
        return self._name

    _set_group_name = setGroupName

    def _set_group_desc(self, desc: str) -> None:
        self._desc = desc

    @property
    def group_name(self) -> str:
        return self._name

    @property
    def group_desc(self) -> str:
        return self._desc

    def getBackendName(self) -> str:  # noqa: N802  torch's name
        return "superpod"

    _get_backend_name = getBackendName

    def _get_backend(self, device: torch.device) -> GroupBase:
        return self

    @property
    def _device_types(self) -> list[torch.device]:
        return [torch.device("cpu")]

    def _set_default_timeout(self, timeout: timedelta) -> None:
        self._engine.timeout = timeout.total_seconds()

    set_timeout = _set_default_timeout

    @property
    def options(self) -> GroupOptions:
        return GroupOptions(timedelta(seconds=self._engine.timeout))

    def get_group_store(self) -> Any:
        return self._store

    def _set_sequence_number_for_group(self) -> None:
        """Nothing to do: a group's calls are numbered from 0 on every rank."""

    def _get_sequence_number_for_group(self) -> int:
        """How many collectives and messages this card has issued on the group; gloo's groups count the same calls."""
        return self._issued

    # Its life

    def split_group(
        self,
        new_ranks: Sequence[int],
        timeout: timedelta | None = None,
        opts: Any = None,
        group_name: str | None = None,
        group_desc: str | None = None,
        device_types: Any = None,
    ) -> GroupBase | None:
        """A new group of this one's ranks `new_ranks`, in ascending order; None on a rank that is not among them.

        All ranks of this group call it, those of one new group with the same ranks; no message is needed. `opts` and
        `device_types` are for backends of several devices.
        """
        ranks, n = sorted(new_ranks), self._engine.world_size
        if not ranks or len(set(ranks)) != len(ranks) or ranks[0] < 0 or ranks[-1] >= n:
            raise InvalidValue(f"new_ranks={list(new_ranks)} must be distinct ranks of the group, 0 to {n - 1}")
        self._split_count += 1
        if self._engine.rank not in ranks:
            return None
        name = group_name or f"{self._name}:split:{self._split_count}:{'_'.join(map(str, ranks))}"
        seconds = self._engine.timeout if timeout is None else timeout.total_seconds()
        store = None if self._store is None else dist.distributed_c10d.PrefixStore(f"{name}/", self._store)
        group = self._card.split(self._engine, ranks, name, seconds, store)
        group._set_group_desc(group_desc or f"{self._desc}:split:{self._split_count}")
        return group

    def eager_connect_single_device(self, device: torch.device | None = None) -> None:
        """Nothing to do: cards connect to those that they have something to say to."""

    def perform_nocolor_split(self, device: torch.device | None = None) -> None:
        """Nothing to do: a split needs only the ranks that are in it."""

    def shutdown(self) -> None:
        """Leave the group; with a process's last group its mesh is closed too. Idempotent."""
        self._card.release(self._engine)

    def abort(self) -> None:
        """Leave the group at once: its calls that are under way end with an error, here and on the other ranks."""
        error = RemoteError(f"rank {self._engine.mesh.rank} has aborted group {self._name}")
        self._engine.abort(error)
        self.shutdown()

    # Coalescing

    def _start_coalescing(self, device: torch.device | None = None) -> None:
        """Begin a block of calls that are all under way at once (see Block); torch's coalescing manager calls it."""
        with self._block_lock:
            if self._block is not None:
                raise InvalidValue(f"group {self._name} is in a coalescing block already; end it before the next one")
            self._block = Block()

    def _end_coalescing(self, device: torch.device | None = None) -> JointWork:
        """End the block; the work stands for all its calls."""
        with self._block_lock:
            if self._block is None:
                raise InvalidValue(f"group {self._name} is in no coalescing block; _start_coalescing begins one")
            block, self._block = self._block, None
        return block.end()

    def _under_way(self, work: TorchWork) -> TorchWork:
        """What the caller gets of a message that has been issued."""
        self._issued += 1
        return work if (block := self._block) is None or not block.is_mine() else block.add(work)

    # For the collectives

    def _by_express(self, short: Short, opts: Any) -> bool:
        """Whether a call has gone its short way."""
        done = self._block is None and run_short(self._engine, short, opts)
        self._issued += done
        return done

    def _keep(self, short: Short, limit: Options, op: Operation | None = None) -> None:
        """Keep the short way for calls like the one that has just run. `op`: how it reduced, if it did."""
        if limit is GROUPS_OWN:
            self._engine.keep(short[0], op)

    def _issue(
        self, what: str, action: Callable[[], Any], opts: Any, result: Any, short: Short | None = None
    ) -> TorchWork:
        """`short`: the call as its short way knows it, if it may go one when it is not waited for."""
        self._issued += 1
        if short is not None and getattr(opts, "asyncOp", True) and limits(opts) is GROUPS_OWN:
            action = issued(self._engine, short, action)
        if (block := self._block) is not None and block.is_mine():
            return block.add(TorchWork(self._engine.issue(what, action, async_op=True), result))
        if getattr(opts, "asyncOp", True):
            return TorchWork(self._engine.issue(what, action, async_op=True), result)
        self._engine.issue(what, action, async_op=False)
        return ENDED

    def monitored_barrier(self, timeout: timedelta | None = None, wait_all_ranks: bool = False) -> None:
        """As ProcessGroupGloo's: a barrier after which rank 0 names the ranks that have not come within `timeout`.

        `torch.distributed.monitored_barrier` serves groups that are called gloo only, so call this method of the
        group. Raises: see torch_backend_monitored.
        """
        seconds = self._engine.timeout if timeout is None else timeout.total_seconds()
        number, self._monitored = self._monitored, self._monitored + 1
        monitored_barrier(self._engine, number, seconds, wait_all_ranks)

    def _expect(self, count: int, what: str) -> None:
        """One of them a rank."""
        if count != self._engine.world_size:
            raise InvalidValue(f"{count} {what}, must be one a rank: {self._engine.world_size}")

    def _fits(self, tensor: Tensor, counts: list[int], what: str) -> None:
        """This rank's own tensor is as long as its block."""
        own = self._engine.rank
        if tensor.numel() != counts[own]:
            raise InvalidValue(f"{what} has {tensor.numel()} elements, but block {own} of the list has {counts[own]}")

    def _splits(self, tensor: Tensor, splits: list[int] | None, name: str) -> list[int]:
        """Elements per rank from splits of the first axis, even ones when none are given."""
        n, rows = self._engine.world_size, tensor.shape[0] if tensor.dim() else 1
        row = tensor.numel() // rows if rows else 0
        if not splits:
            if rows % n:
                raise InvalidValue(
                    f"{name} of {rows} rows cannot be split evenly over {n} ranks; give {name}_split_sizes"
                )
            splits = [rows // n] * n
        self._expect(len(splits), f"{name} splits")
        if sum(splits) != rows or min(splits) < 0:
            raise InvalidValue(
                f"{name}_split_sizes={list(splits)} must be 0 or more and add up to the {rows} rows, not {sum(splits)}"
            )
        return [s * row for s in splits]


def only(items: Any) -> Any:
    """The one item of a list: torch passes lists, from the time when a process drove several devices."""
    if type(items) is not list and isinstance(items, Tensor):
        return items
    if len(items) != 1:
        raise InvalidValue(f"{len(items)} items in the list, must be 1: one process drives one card")
    return items[0]


def blocks_of(lists: Any) -> list[Tensor]:
    """The one list of tensors in a list of lists, or the list itself in torch's shorter signatures."""
    blocks: list[Tensor] = lists if lists and isinstance(lists[0], Tensor) else only(lists)
    return blocks
