"""The stack of a process that cannot answer, by a signal."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest

from superpod.collectives import stacks

WAIT = 10  # seconds
CHILD = """
import sys
from pathlib import Path
from superpod.collectives import stacks

def native():
    print("ready", flush=True)
    while True:
        pass

stacks.answer_the_signal(Path(sys.argv[1]), 3)
native()
"""


@pytest.fixture
def child(tmp_path):
    script = tmp_path / "child.py"
    script.write_text(CHILD)
    process = subprocess.Popen([sys.executable, script, tmp_path], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout.readline() == "ready\n"
        yield process
    finally:
        process.kill()
        process.communicate()


def answered(question):
    """The two frames of the child, once they have been written."""
    end = time.monotonic() + WAIT
    while len(frames := question.answer()) < 2:
        assert time.monotonic() < end
    return frames


def test_the_latest_stack_of_a_card(child, tmp_path):
    assert stacks.writers(tmp_path) == {3: child.pid}
    for _ in range(2):
        frames = answered(stacks.ask(tmp_path, 3, child.pid))
    assert [(frame.function, frame.users) for frame in frames] == [("native", True), ("<module>", True)]
    assert frames[0].line in (7, 8, 9)  # in print, if it was quick
    assert frames[0].file.endswith("child.py")
    assert child.poll() is None


def test_a_stack_from_before_is_no_answer(child, tmp_path):
    answered(stacks.ask(tmp_path, 3, child.pid))
    child.send_signal(signal.SIGSTOP)
    question = stacks.ask(tmp_path, 3, child.pid)
    assert question.answer() == ()
    child.send_signal(signal.SIGCONT)
    answered(question)


def test_a_process_without_a_handler_is_left_alone(tmp_path):
    if (pid := os.fork()) == 0:
        signal.signal(stacks.SIGNAL, signal.SIG_DFL)
        time.sleep(WAIT)
        os._exit(0)
    assert stacks.ask(tmp_path, 3, pid) is None
    assert os.waitpid(pid, os.WNOHANG) == (0, 0)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    assert stacks.ask(tmp_path, 3, pid) is None


@pytest.mark.parametrize("content", ["", "Stack (most recent call first):\n", "nonsense", "  File x, line y"])
def test_a_file_without_a_stack(tmp_path, content):
    (tmp_path / "stack3-7").write_text(content)
    assert stacks.Question(tmp_path / "stack3-7", 0).answer() == ()
    assert stacks.Question(tmp_path / "stack4-7", 0).answer() == ()
    (tmp_path / "stackless-x").touch()
    assert stacks.writers(tmp_path) == {3: 7}
