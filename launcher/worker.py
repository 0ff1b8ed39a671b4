"""A card's process: runs the user's program as `python script.py` or `python -m module` would.

The same names, argv, path and `__main__`, the same traceback (the launcher's frames are cut off), the same exit codes.
Two things are added. An uncaught error is told to the launcher before anything is torn down. And the interpreter is
not finalized in full: that would cost a second of processor time per card once torch is loaded (64 cards on 2 cores:
40 s, measured, against 0.4 s). Instead `_leave` does what users can see of it: it waits for threads, runs atexit
handlers, lets go of the user's own modules, so that their open files are written, and flushes. What it leaves out: the
other modules' objects are not deleted, and handlers that C code registered for exit() do not run.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import io
import itertools
import os
import runpy
import signal
import sys
import threading
import traceback
from importlib.machinery import SourceFileLoader
from types import CodeType, ModuleType, TracebackType
from typing import Any, NoReturn

from superpod.collectives import stacks
from superpod.interconnect.control import send_news
from superpod.interconnect.env import Place, Settings
from superpod.interconnect.errors import JobFailure
from superpod.launcher.hbm import Budget
from superpod.launcher.job import absolute, compile_script
from superpod.launcher.preload import is_installed
from superpod.launcher.processes import flush_c_streams

_MAX_MESSAGE, _MAX_TRACE = 4 * 1024, 16 * 1024  # characters in the news: a datagram holds 128 KiB, one may take 6 B
_LONGEST_CHAIN = 100  # errors that came from one another; a user can tie them into a ring
_INTERRUPTED = -signal.SIGINT


def main() -> NoReturn:
    """A card that is a fresh interpreter: argv is kind, target, arguments."""
    kind, target, *args = sys.argv[1:]
    run(kind, target, args, None)


def run(kind: str, target: str, args: list[str], code: CodeType | None) -> NoReturn:
    """Run the target in this process, whose environment says which card it is, and end the process.

    `code` is the compiled script, where somebody has compiled it already.
    """
    last_shared = next(reversed(sys.modules))  # what comes after it this card imports; a set of all would copy 4 MB
    launcher = LauncherLine()
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(line_buffering=True)  # a line is seen when it is printed
    launcher.tell("up")
    launcher.answer_the_signal()
    launcher.begin_budget()
    _leave(_execute(kind, target, args, code, launcher), last_shared)


class LauncherLine:
    """This card's line to its launcher, as the environment says it before the user's program can change that."""

    def __init__(self) -> None:
        settings = Settings.read()
        self._directory, self._rank = settings.directory, Place.read().rank
        self._hbm = settings.hbm
        self._budget: Budget | None = None
        self._pid = os.getpid()
        self.debug = settings.debug != "off"

    def answer_the_signal(self) -> None:
        """From now on this card's stack can be had even when it does not answer."""
        if self._directory is not None:
            with contextlib.suppress(OSError, RuntimeError):  # a card without it is a card all the same
                stacks.answer_the_signal(self._directory, self._rank)

    def begin_budget(self) -> None:
        """From now on --hbm counts."""
        self._budget = Budget.begin(self._rank, self._hbm)

    def explained(self, error: BaseException) -> BaseException:
        """An error that ends the program, in the words of the card's budget if that is why."""
        return error if self._budget is None else self._budget.explained(error)

    def tell(self, event: str, **fields: Any) -> None:
        if os.getpid() == self._pid:  # what a fork of the card does is no news about the card
            send_news(self._directory, self._rank, event, **fields)


def _execute(kind: str, target: str, args: list[str], code: CodeType | None, launcher: LauncherLine) -> int:
    """Returns the exit code; -SIGINT when it was interrupted."""
    try:
        if kind == "module":
            _run_module(target, args)
        else:
            _run_script(target, args, code)
    except SystemExit as end:
        return _exit_code(end)
    except BaseException as error:  # noqa: BLE001  # whatever it is, Python would print it
        error.__traceback__ = without_frames_of(__file__, error.__traceback__)
        _tell_and_print(launcher.explained(error), launcher)
        return _INTERRUPTED if isinstance(error, KeyboardInterrupt) else 1
    return 0


def _run_script(target: str, args: list[str], code: CodeType | None) -> None:
    sys.argv = [target, *args]
    if not sys.flags.safe_path:
        sys.path.insert(0, os.path.dirname(os.path.realpath(target)))
    path = absolute(target)
    namespace = _fresh_main()
    namespace.update(__file__=path, __cached__=None, __loader__=SourceFileLoader("__main__", path))
    exec(code or compile_script(target), namespace)


def _run_module(target: str, args: list[str]) -> None:
    sys.argv = ["-m", *args]
    if not sys.flags.safe_path:
        sys.path.insert(0, os.getcwd())
    _fresh_main()
    runpy._run_module_as_main(target)  # type: ignore[attr-defined]  # what `python -m` itself calls


def _fresh_main() -> dict[str, Any]:
    """The namespace of `__main__`, emptied. The module stays: others, such as multiprocessing, hold on to it."""
    namespace = sys.modules["__main__"].__dict__
    namespace.clear()
    namespace.update(dict.fromkeys(("__doc__", "__package__", "__loader__", "__spec__")))
    namespace.update(__name__="__main__", __builtins__=sys.modules["builtins"], __annotations__={})
    return namespace


def _exit_code(end: SystemExit) -> int:
    if end.code is None:
        return 0
    if isinstance(end.code, int):
        return end.code & 0xFF
    print(end.code, file=sys.stderr)
    return 1


def _tell_and_print(error: BaseException, launcher: LauncherLine) -> None:
    """Tell the launcher, then print what Python prints.

    Of an error that only says that another card ended the job, one line, or 63 tracebacks would bury the one that
    matters; of an interrupt nothing: it came from the launcher. SUPERPOD_DEBUG=info shows both.
    """
    consequence = is_consequence(error)
    launcher.tell(
        "error",
        type=type(error).__qualname__,
        message=_message(error)[:_MAX_MESSAGE],
        traceback=_shortened("".join(traceback.format_exception(error))),
        consequence=consequence,
    )
    if isinstance(error, KeyboardInterrupt) and not launcher.debug:
        return
    if consequence and not launcher.debug:
        print("".join(traceback.format_exception_only(error)), end="", file=sys.stderr)
        return
    try:
        sys.excepthook(type(error), error, error.__traceback__)
    except BaseException:  # noqa: BLE001  # the user's own hook
        traceback.print_exc()
        traceback.print_exception(error)


def _shortened(trace: str) -> str:
    """A traceback with what is too much left out of its middle: it begins with the frames and ends with the reason."""
    left_out = len(trace) - _MAX_TRACE
    if left_out <= 0:
        return trace
    half = _MAX_TRACE // 2
    return f"{trace[:half]}\n... {left_out} characters left out ...\n{trace[-half:]}"


def _message(error: BaseException) -> str:
    try:
        return str(error)
    except Exception:  # noqa: BLE001  # the user's own __str__
        return "<its text cannot be made>"


def is_consequence(error: BaseException | None) -> bool:
    """Whether the error, or one that it came from, is another card's failure."""
    for _ in range(_LONGEST_CHAIN):
        if error is None or isinstance(error, JobFailure):
            break
        error = error.__cause__ if error.__cause__ is not None else error.__context__
    return isinstance(error, JobFailure)


def without_frames_of(file: str, trace: TracebackType | None) -> TracebackType | None:
    """The part of a traceback that begins below the frames of `file`, its caller's: the user's part."""
    while trace is not None and trace.tb_frame.f_code.co_filename == file:
        trace = trace.tb_next
    return trace


def _leave(status: int, last_shared: str) -> NoReturn:
    try:
        threading._shutdown()  # type: ignore[attr-defined]  # waits for threads, as Python's own end does
        atexit._run_exitfuncs()
        if status != _INTERRUPTED:
            _let_go(last_shared)
    except KeyboardInterrupt:
        status = _INTERRUPTED
    status = _flush(status)
    if status == _INTERRUPTED:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
    os._exit(status)


def _let_go(last_shared: str) -> None:
    """Drop what the user's own modules hold, as the end of Python does: files are written, `__del__` is called."""
    sys.setswitchinterval(60)  # daemon threads no longer run; Python stops them too
    later = list(itertools.takewhile(lambda name: name != last_shared, reversed(sys.modules)))  # a look may load more
    own = [sys.modules[name] for name in later if _is_own(name)]
    for module in [sys.modules["__main__"], *own]:
        names = [name for name in module.__dict__ if name != "__builtins__"]
        for name in sorted(names, key=lambda name: not name.startswith("_")):  # underscores first, as Python has it
            module.__dict__[name] = None
    gc.collect()


def _is_own(name: str) -> bool:
    module = sys.modules[name]
    file = getattr(module, "__file__", None)
    return isinstance(module, ModuleType) and isinstance(file, str) and not is_installed(file)


def _flush(status: int) -> int:
    """Returns `status`, or Python's 120 when nothing else failed but the output could not be written."""
    for stream in (sys.stdout, sys.stderr):
        try:
            if stream is not None and not stream.closed:
                stream.flush()
        except (OSError, ValueError):
            status = status or 120
    flush_c_streams()
    return status
