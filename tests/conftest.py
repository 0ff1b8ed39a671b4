"""For all tests: Ctrl-C means what it means at a terminal, also when a shell started them in its background."""

from __future__ import annotations

import signal

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # inherited, and handed on to every process that a test starts
    signal.signal(signal.SIGINT, signal.default_int_handler)
