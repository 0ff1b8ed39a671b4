"""A plan is refused before any card starts, or it is carried out as it was written."""

import pytest

from superpod.benchmarks import plan
from superpod.benchmarks.plan import Plan, Series
from superpod.interconnect.errors import InvalidValue


def _plan(*names, low=8, high=1024, dtype="float32", op="sum", **fields):
    series = plan.series(names or ("all_reduce",), algorithm="auto", dtype=dtype, op=op)
    return Plan(series, plan.sizes(low, high, factor=None, step=None), **fields)


def test_sizes_multiply_or_add():
    assert plan.sizes(8, 64, factor=2, step=None) == (8, 16, 32, 64)
    assert plan.sizes(8, 100, factor=3, step=None) == (8, 24, 72)
    assert plan.sizes(8, 33, factor=None, step=12) == (8, 20, 32)
    assert plan.sizes(8, 8, factor=None, step=None) == (8,)


@pytest.mark.parametrize(
    ("low", "high", "factor", "step", "message"),
    [
        (64, 8, None, None, "-e 8 B must not be below -b 64 B"),
        (0, 8, None, None, "-b 0 must be at least 1 byte"),
        (1, 1 << 40, None, 1, "-i 1 B makes more than 10000 sizes up to 1 TiB; take a larger one, or -f"),
        (8, 64, 1, None, "-f 1 must be at least 2, or the sizes never reach -e; for one size let -b equal -e"),
        (8, 64, None, 0, "-i 0 must be at least 1 byte"),
        (8, 64, 2, 8, "-f 2 and -i 8 exclude each other"),
    ],
)
def test_sizes_that_lead_nowhere_are_refused(low, high, factor, step, message):
    with pytest.raises(InvalidValue, match=message):
        plan.sizes(low, high, factor=factor, step=step)


def test_sizes_from_a_list():
    assert plan.listed_sizes("64K,8,1M") == (65536, 8, 1 << 20)
    with pytest.raises(InvalidValue, match="--sizes 8,0 must be sizes of at least 1 byte, such as 8,64K,1M"):
        plan.listed_sizes("8,0")
    with pytest.raises(InvalidValue, match="size '' must be a number"):
        plan.listed_sizes("8,")


def test_names_are_chosen_from_lists():
    assert plan.collectives("broadcast,all_reduce") == ("broadcast", "all_reduce")
    assert len(plan.collectives("all")) == 10
    with pytest.raises(InvalidValue, match=r"'allreduce' is unknown; choose from all_reduce, .*barrier, .*, or all"):
        plan.collectives("allreduce")
    assert plan.worlds("2,8,64") == (2, 8, 64)
    with pytest.raises(InvalidValue, match="-n 'two' must be a number of cards, or a list such as 2,8,64"):
        plan.worlds("two")


def test_nccl_tests_names_of_dtypes_are_known():
    assert [s.dtype for s in _plan(dtype="half,float,double").series] == ["float16", "float32", "float64"]


def test_all_takes_every_combination_that_makes_sense():
    pairs = {(s.dtype, s.op) for s in _plan(dtype="all", op="all").series}
    assert ("int32", "bxor") in pairs
    assert ("float32", "avg") in pairs
    assert ("float32", "bxor") not in pairs
    assert ("int32", "avg") not in pairs


def test_what_was_asked_for_by_name_and_makes_no_sense_is_refused():
    with pytest.raises(InvalidValue, match="op='bxor' makes no sense for floating point float32"):
        _plan(op="bxor")
    with pytest.raises(InvalidValue, match="-d 'float8' is unknown; choose from int8"):
        _plan(dtype="float8")
    with pytest.raises(InvalidValue, match="-o 'mean' is unknown; choose from sum"):
        _plan(op="mean")
    with pytest.raises(InvalidValue, match=r"--algorithm for all_reduce: 'comet' is unknown; choose from auto, .*ring"):
        plan.series(("all_reduce",), algorithm="comet", dtype="float32", op="sum")
    with pytest.raises(InvalidValue, match="--algorithm ring means nothing for sendrecv"):
        plan.series(("sendrecv",), algorithm="ring", dtype="float32", op="sum")


def test_every_algorithm_by_itself():
    found = [s.algorithm for s in plan.series(("all_reduce",), algorithm="all", dtype="float32", op="sum")]
    assert "ring" in found
    assert "auto" not in found


def test_a_collective_that_does_not_reduce_ignores_the_operation():
    assert [(s.dtype, s.op) for s in _plan("broadcast", op="max,min").series] == [("float32", "none")]


def test_counts_are_whole_elements_and_whole_blocks():
    todo = _plan(low=2, high=64)
    assert todo.counts(Series("all_reduce", "auto", "float32", "sum"), 8) == (1, 2, 4, 8, 16)
    assert todo.counts(Series("all_gather", "auto", "float32", "none"), 8) == (8, 16)
    assert todo.counts(Series("all_gather", "auto", "float32", "none"), 3) == (3, 6, 15)
    assert todo.counts(Series("barrier", "auto", "uint8", "none"), 8) == (0,)


def test_long_calls_are_repeated_less_often():
    todo = _plan(iters=20, warmup=5, budget=1.0)
    assert todo.repeats(1e-5) == (5, 20)
    assert todo.repeats(0.1) == (2, 10)
    assert todo.repeats(30) == (1, 3)
    assert _plan(iters=2, warmup=0).repeats(30) == (0, 2)


@pytest.mark.parametrize(
    ("todo", "world_size", "message"),
    [
        (_plan(), 0, "-n 0 must be at least 1 card"),
        (_plan("broadcast", root=4), 4, "-r 4 must be a rank: 0 to 3 with -n 4"),
        (
            _plan("all_gather", high=8),
            8,
            "-e 8 is less than one float32 for each card: all_gather on 8 cards needs -e 32",
        ),
        (_plan(dtype="half"), 1000, "float16 counts exactly to 2048 only, too few for world_size=1000"),
        (_plan("sendrecv"), 1, "sendrecv needs at least 2 cards"),
        (
            _plan(low=1 << 30, high=1 << 30),
            64,
            "1 GiB on 64 cards need about 192 GiB of memory, 8 GiB are free; choose",
        ),
    ],
)
def test_a_world_that_cannot_carry_the_plan_out_is_refused(todo, world_size, message):
    with pytest.raises(InvalidValue, match=message):
        plan.check_world(todo, world_size, 8 << 30)


def test_the_plan_reaches_the_cards_unchanged():
    todo = _plan("all_reduce", "broadcast", root=1, iters=7, check=False, budget=0.5)
    assert Plan.from_json(todo.to_json()) == todo
