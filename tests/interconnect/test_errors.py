from __future__ import annotations

import inspect
import pickle

import pytest

from superpod.interconnect import errors
from superpod.interconnect.errors import InvalidValue, JobFailure, SuperpodError, ranks_text

CLASSES = [value for value in vars(errors).values() if inspect.isclass(value) and issubclass(value, SuperpodError)]


@pytest.mark.parametrize("error", CLASSES, ids=lambda error: error.__name__)
def test_the_tree_at_the_top_of_the_file_is_the_true_one(error):
    row = next(line for line in errors.__doc__.splitlines() if f" {error.__name__} " in f" {line} ")
    assert row.startswith("    ") == (error.__bases__ == (JobFailure,))
    if error.__bases__[-1].__module__ == "builtins":
        assert f"({error.__bases__[-1].__name__})" in row


@pytest.mark.parametrize("error", CLASSES, ids=lambda error: error.__name__)
def test_errors_are_caught_by_the_root_and_travel_between_processes(error):
    with pytest.raises(SuperpodError, match="rank 3 left"):
        raise error("rank 3 left")
    assert type(pickle.loads(pickle.dumps(error("x")))) is error


def test_python_programmers_catch_what_they_know():
    assert issubclass(InvalidValue, ValueError)
    assert issubclass(errors.DeadlineExceeded, TimeoutError)
    assert issubclass(SuperpodError, RuntimeError)


@pytest.mark.parametrize(
    ("ranks", "text"),
    [
        ([], "no rank"),
        ([3], "rank 3"),
        ([3, 3], "rank 3"),
        ([0, 1], "ranks 0-1"),
        ([5, 2, 0, 1], "ranks 0-2, 5"),
        ({7, 9, 11}, "ranks 7, 9, 11"),
        (range(64), "ranks 0-63"),
    ],
)
def test_ranks_text(ranks, text):
    assert ranks_text(ranks) == text
