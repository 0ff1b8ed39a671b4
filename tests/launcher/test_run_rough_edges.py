"""What a job does in corners: cards that never join, odd texts, odd environments, odd places to start from."""

from __future__ import annotations

import pytest

pytestmark = pytest.mark.timeout(60)


@pytest.mark.parametrize("link", ["zmq", "shm"])
def test_a_card_that_ends_well_before_it_joins_is_told_to_those_who_wait_for_it(launch, link):
    script = launch.script(
        "main.py",
        """
        import os, sys
        import numpy as np
        import superpod

        if os.environ["RANK"] == sys.argv[1]:
            sys.exit(0)
        superpod.init().all_reduce(np.ones(10))
        """,
    )
    for early in (0, 1):  # on a board rank 0 brings the board
        job = launch("-n", 3, script, early, env={"SUPERPOD_LINK": link, "SUPERPOD_TIMEOUT": "30"})
        assert f"raised PeerLost: rank {early} exited with code 0" in job.err
        assert (job.code, job.seconds < 15) == (1, True)


def test_so_it_is_in_torch_groups(launch):
    script = launch.script(
        "main.py",
        """
        import os, sys
        import torch
        import torch.distributed as dist

        if os.environ["RANK"] == "1":
            sys.exit(0)
        dist.init_process_group("superpod")
        dist.all_reduce(torch.ones(10))
        """,
    )
    job = launch("-n", 3, script, env={"SUPERPOD_TIMEOUT": "30"})
    assert "rank 1 exited with code 0 before it joined" in job.err
    assert (job.code, job.seconds < 20) == (1, True)
