"""torch's own tests on superpod: a fast choice of them. `make conformance` runs all."""

from __future__ import annotations

import subprocess

import pytest
from torch_suite import FAILED, NOT_APPLICABLE, PASSED, first_error

from conformance import reason, results

WORLD = 3
CHOICE = (  # one of each kind, of those that take less than a second
    "test_all_gather_coalesced_simple",
    "test_all_gather_object_default_pg",
    "test_all_reduce_coalesced_sum",
    "test_all_reduce_complex_unsupported_ops",
    "test_broadcast_full_group",
    "test_gather_full_group",
    "test_isend",
    "test_monitored_barrier_gloo_rank_0_timeout",
    "test_reduce_full_group_max",
    "test_scatter_object_list",
    "test_send_recv_any_source",
    "test_sparse_all_reduce_sum",
)
ELSEWHERE = {"test_barrier_cuda": "needs CUDA devices", "test_gather_group": "needs another world size"}
BY_METHOD = ("test_monitored_barrier_gloo", "test_monitored_barrier_gloo_subgroup")


def outcomes(guise: str, *names: str, backend: str = "superpod") -> dict[str, tuple[str, str]]:
    match = f"^({'|'.join(names)})$"
    return {t["test"]: (t["outcome"], reason(t["why"])) for t in results(guise, WORLD, match, backend)}


def test_a_choice_of_torchs_tests() -> None:
    found = outcomes("gloo", *CHOICE, *ELSEWHERE)
    assert {name: found.pop(name) for name in ELSEWHERE} == {n: (NOT_APPLICABLE, why) for n, why in ELSEWHERE.items()}
    assert found == dict.fromkeys(CHOICE, (PASSED, ""))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("guise", "names"), [("gloo", BY_METHOD), ("mpi", ("test_all_to_all_single_unequal_split_complex",))]
)
def test_those_that_torch_keeps_for_one_name(guise: str, names: tuple[str, ...]) -> None:
    assert outcomes(guise, *names) == dict.fromkeys(names, (PASSED, ""))


@pytest.mark.slow
def test_a_backend_that_is_not_there_fails() -> None:
    ((outcome, why),) = outcomes("gloo", "test_isend", backend="nowhere").values()
    assert outcome == FAILED
    assert "nowhere" in why.lower()


def test_a_suite_that_breaks_off_is_an_error() -> None:
    with pytest.raises(subprocess.CalledProcessError):
        list(results("nobody", WORLD, "", "superpod"))


def test_the_telling_line_of_a_log() -> None:
    log = "RuntimeError: Process 0 exited with error code 10\nsuperpod.errors.PeerLost: rank 1 died\nthe end"
    assert first_error(log) == "superpod.errors.PeerLost: rank 1 died"
    assert first_error("Segmentation fault\n") == "Segmentation fault"
    assert first_error("") == "no rank was started"
