"""An agent on another host, started over ssh: `python -m superpod.launcher.remote`.

Orders come on stdin, events go to stdout, both as frames (see line.py); what anything prints goes to stderr. When the
head of the job has gone, or says nothing for too long, the agent ends all that it has started and leaves nothing.
"""

from __future__ import annotations

import os
import sys

from superpod.launcher.far import FarAgent
from superpod.launcher.line import PipeLine


def main() -> int:
    reader, writer = os.dup(0), os.dup(1)
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)
    os.dup2(2, 1)
    return FarAgent(PipeLine(reader, writer, greets=True)).run()


if __name__ == "__main__":
    sys.exit(main())
