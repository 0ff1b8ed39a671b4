"""For all tests: Ctrl-C means what it means at a terminal, also when a shell started them in its background; and what
superpod-bench tune has found on this machine changes nothing.
"""

from __future__ import annotations

import os
import signal

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # inherited, and handed on to every process that a test starts
    signal.signal(signal.SIGINT, signal.default_int_handler)

os.environ["SUPERPOD_TUNING"] = "off"
