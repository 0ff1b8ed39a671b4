"""What nobody has closed ends when it is garbage: no thread and no socket stays, and the collector never waits."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

OWNERS = {
    "ZmqLink": "ZmqLink(0)",
    "ZmqLink, between hosts": "ZmqLink(0, between_hosts='tcp://127.0.0.1:0', keys=Keys(secret))",
    "LauncherStore": "LauncherStore('tcp://127.0.0.1:9', None, secret)",
    "StoreServer": "StoreServer('ipc://@superpod-test-contexts')",
    "StoreServer, between hosts": "StoreServer('tcp://127.0.0.1:0', secret)",
    "AgentDesk": "AgentDesk('tcp://127.0.0.1:0', secret)",
    "AgentCall": "AgentCall(['tcp://127.0.0.1:9'], secret)",
}
PROGRAM = """
import gc, os, time
import zmq
from superpod.interconnect.keys import Keys
from superpod.interconnect.rendezvous import LauncherStore, StoreServer
from superpod.interconnect.secret import JobSecret
from superpod.interconnect.zmq_agents import AgentCall, AgentDesk
from superpod.interconnect.zmq_link import ZmqLink

class Owner: pass
secret = JobSecret.new()

def ran():
    return len(os.listdir("/proc/self/task")), len(os.listdir("/proc/self/fd"))

def leave_one(fork):
    owner = Owner()
    owner.held, owner.itself = {make}, owner
    if fork and os.fork() == 0:
        del owner
        gc.collect()  # the child's half of it: the parent's context is not the child's to end
        os._exit(0)
    if fork:
        assert os.wait()[1] == 0

leave_one(False)  # what is made once and stays
gc.collect()
before = ran()
for fork in (False, True):
    leave_one(fork)
    gc.collect()
end = time.monotonic() + 10
while ran() != before and time.monotonic() < end:
    time.sleep(0.01)
print(before == ran())
"""


@pytest.mark.parametrize("owner", OWNERS)
def test_what_is_garbage_ends_without_being_closed(owner):
    program = PROGRAM.replace("{make}", OWNERS[owner])
    environment = {**os.environ, "PYTHONWARNINGS": "ignore"}
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, env=environment, check=False
    )
    assert (done.stdout, done.returncode) == ("True\n", 0), done.stderr
