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


def test_the_latest_stack_of_a_card(child, tmp_path):
    assert stacks.writers(tmp_path) == {3: child.pid}
    assert stacks.read(tmp_path, 3, child.pid) == ()
    for _ in range(2):
        assert stacks.ask(child.pid)
    end = time.monotonic() + WAIT
    while len(frames := stacks.read(tmp_path, 3, child.pid)) < 2 and time.monotonic() < end:
        pass  # it is being written
    assert [(frame.function, frame.users) for frame in frames] == [("native", True), ("<module>", True)]
    assert frames[0].line in (7, 8, 9)  # in print, if it was quick
    assert frames[0].file.endswith("child.py")
    assert child.poll() is None


def test_a_process_without_a_handler_is_left_alone():
    if (pid := os.fork()) == 0:
        signal.signal(stacks.SIGNAL, signal.SIG_DFL)
        time.sleep(WAIT)
        os._exit(0)
    assert not stacks.ask(pid)
    assert os.waitpid(pid, os.WNOHANG) == (0, 0)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    assert not stacks.ask(pid)


@pytest.mark.parametrize("content", ["", "Stack (most recent call first):\n", "nonsense", "  File x, line y"])
def test_a_file_without_a_stack(tmp_path, content):
    (tmp_path / "stack3-7").write_text(content)
    assert stacks.read(tmp_path, 3, 7) == ()
    assert stacks.read(tmp_path, 4, 7) == ()
    (tmp_path / "stackless-x").touch()
    assert stacks.writers(tmp_path) == {3: 7}
