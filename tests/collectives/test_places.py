"""Where in the user's code: found through frames of superpod and of libraries, from any depth."""

from __future__ import annotations

import sys
import threading

from superpod.collectives import places
from superpod.collectives.places import OWN, Caller, Frame, frames_from, is_foreign, shortened, stack, words

WAIT = 10  # seconds


def within(file: str, depth: int, caller: Caller):
    """A function that asks `caller` from `depth` functions, one in the other, that seem to stand in `file`."""
    lines = ["def f0(): return caller.place()", *(f"def f{d}(): return f{d - 1}()" for d in range(1, depth))]
    namespace = {"caller": caller}
    exec(compile("\n".join(lines), file, "exec"), namespace)
    return namespace[f"f{depth - 1}"]


def test_the_users_line_is_found_from_whatever_depth():
    caller = Caller()
    for depth in (1, 4, 1, 4, 9, 2, 2):  # each time, the last depth is a wrong guess or a right one
        ask = within(OWN + "collectives/made_up.py", depth, caller)
        line = sys._getframe().f_lineno + 1
        assert words(ask()).endswith(f"test_places.py:{line}")


def test_a_library_of_the_user_is_not_the_users_code():
    caller = Caller()
    inner = within(OWN + "collectives/made_up.py", 2, caller)
    namespace = {"inner": inner}
    exec(compile("def outer():\n    return inner()", "/x/site-packages/trainer.py", "exec"), namespace)
    line = sys._getframe().f_lineno + 1
    assert words(namespace["outer"]()).endswith(f"test_places.py:{line}")


def test_without_code_of_the_users_there_is_no_place():
    found = []
    caller = Caller()
    thread = threading.Thread(target=lambda: None)
    thread.run = within(OWN + "collectives/made_up.py", 2, caller)  # type: ignore[method-assign]
    run = thread.run
    thread.run = within_library(run, found)  # type: ignore[method-assign]
    thread.start()
    thread.join(WAIT)
    assert found == [None]
    assert words(None) == ""


def within_library(run, found):
    namespace = {"run": run, "found": found}
    exec(compile("def call():\n    found.append(run())", OWN + "launcher/made_up.py", "exec"), namespace)
    return namespace["call"]


def test_whose_code_it_is():
    assert is_foreign(places.__file__)
    assert is_foreign(threading.__file__)
    assert is_foreign("<frozen runpy>")
    assert not is_foreign(__file__)


def test_paths_are_short(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert shortened(str(tmp_path / "sub" / "train.py")) == "sub/train.py"
    assert shortened("/elsewhere/train.py") == "/elsewhere/train.py"
    assert shortened(places.__file__) == "superpod/collectives/places.py"


def test_the_stack_of_a_thread_that_is_stuck():
    begun, over = threading.Event(), threading.Event()

    def compute():
        begun.set()
        over.wait(WAIT)

    thread = threading.Thread(target=compute)
    thread.start()
    assert begun.wait(WAIT)
    frames = stack(thread.ident or 0)
    over.set()
    thread.join(WAIT)
    users = [frame for frame in frames if frame.users]
    assert [frame.function for frame in users] == ["compute"]
    assert users[0].line in (compute.__code__.co_firstlineno + 1, compute.__code__.co_firstlineno + 2)
    assert frames[-1] == users[0]  # how the thread came to run it is left out
    assert stack(0) == []


def test_frames_survive_a_wire_and_nonsense_does_not():
    frame = Frame("train.py", 88, "compute", True)
    assert frames_from([list(frame), ["train.py", "88", "f", True], 3, ["a", 1, "b", False]]) == [
        frame,
        Frame("a", 1, "b", False),
    ]
    assert frames_from("train.py") == []
    assert str(frame) == "train.py:88 compute"
