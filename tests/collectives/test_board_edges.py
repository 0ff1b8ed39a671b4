"""Cards at a board when something comes in between: a signal's handler, a fork, a group that is made again."""

from __future__ import annotations

import os
import signal
import threading
import time

import numpy as np
import pytest

from superpod.collectives.communicator import Communicator
from superpod.interconnect.errors import DeadlineExceeded, SuperpodError
from superpod.launcher.testing import run_ranks


@pytest.mark.parametrize("pause", [0.0, 0.3])
def test_a_handler_that_calls_is_refused_and_the_call_that_it_interrupted_goes_on(pause: float) -> None:
    def card(comm: Communicator) -> tuple[list[float], str]:
        refused = ""

        def handler(*_: object) -> None:
            nonlocal refused
            try:
                comm.barrier()
            except SuperpodError as error:
                refused = str(error)

        comm.barrier()
        if comm.rank == 0:
            signal.signal(signal.SIGUSR1, handler)
            threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGUSR1)).start()
        else:
            time.sleep(0.1 + pause)
        return [float(comm.all_reduce(np.full(4, float(i + comm.rank)))[0]) for i in (1, 10)], refused

    results = run_ranks(2, card, link="shm")
    assert [sums for sums, _ in results] == [[3.0, 21.0]] * 2
    assert results[0][1] == (
        "barrier of group world was called by a signal's handler that has interrupted another call of the group on "
        "rank 0; let the handler set a flag"
    )


def test_a_forked_child_that_closes_signs_nobody_off() -> None:
    def card(comm: Communicator) -> float:
        comm.barrier()
        if comm.rank == 0:
            if (child := os.fork()) == 0:
                try:
                    comm.close()
                finally:
                    os._exit(0)
            os.waitpid(child, 0)
            time.sleep(0.6)  # the other one looks around meanwhile
        return float(comm.all_reduce(np.ones(1))[0])

    assert run_ranks(2, card, link="shm") == [2.0, 2.0]


def test_a_group_made_again_after_a_failure_meets_at_a_board_of_its_own() -> None:
    def card(comm: Communicator) -> float:
        group = comm.group([0, 1])
        assert group is not None
        if comm.rank == 0:
            with pytest.raises(DeadlineExceeded):
                group.barrier(timeout=0.2)
        comm.barrier()
        group.close()
        again = comm.group([0, 1])
        assert again is not None
        return float(again.all_reduce(np.ones(1))[0])

    assert run_ranks(2, card, link="shm") == [2.0, 2.0]
