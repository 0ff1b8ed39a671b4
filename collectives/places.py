"""Where in the user's code a call was made, and what the stack of a thread says.

`Caller` is on the path of every collective: it looks at two frames and formats nothing (0.3 µs; a walk over all of
superpod's and torch's frames takes 0.8 µs, for Python makes an object of each).
"""

from __future__ import annotations

import os
import sys
import sysconfig
from types import CodeType, FrameType
from typing import Any, NamedTuple

OWN = os.path.dirname(os.path.dirname(os.path.abspath(__file__))) + os.sep
_LAUNCHER = os.path.join(OWN, "launcher", "")
_PROGRAMS = os.path.join(OWN, "benchmarks", "")  # they call superpod as a user's script would
_SCHEMES = ("stdlib", "platstdlib", "purelib", "platlib")
_INSTALLED = (*(sysconfig.get_path(name) + os.sep for name in _SCHEMES), "<frozen ", "<string>")
_PACKAGES = (f"{os.sep}site-packages{os.sep}", f"{os.sep}dist-packages{os.sep}")
_MOST_FRAMES = 12  # of a stack; the rest is cut off where it is least interesting, at the outer end

Place = tuple[CodeType, int]
"""A code object and the offset of the instruction in it; `words` makes text of it."""

_foreign: dict[str, bool] = {}  # file name → whether its code is superpod's or a library's


class Frame(NamedTuple):
    """One line of a stack. `users`: whether it is the user's code, not a library's."""

    file: str
    line: int
    function: str
    users: bool

    def __str__(self) -> str:
        return f"{self.file}:{self.line} {self.function}"

    @property
    def words(self) -> str:
        return f"{self.function} at {self.file}:{self.line}"


def is_foreign(file: str) -> bool:
    """Whether the code in `file` is superpod's or a library's, not the user's."""
    known = _foreign.get(file)
    if known is None:
        installed = file.startswith((OWN, *_INSTALLED)) or any(p in file for p in _PACKAGES)
        known = _foreign[file] = installed and not file.startswith(_PROGRAMS)
    return known


class Caller:
    """Finds the place in the user's code from which it was called, through whatever libraries.

    Attributes:
        depth: how many frames further out the user's code was found last, and where it mostly is the next time.
    """

    def __init__(self) -> None:
        self._last: Place | None = None  # given again if it is the same, so that it can be told by identity
        self.depth = 1

    def place(self) -> Place | None:
        """None when no frame is the user's."""
        try:
            inner = sys._getframe(self.depth)
        except ValueError:  # the stack is not that deep
            return self._search()
        if (frame := inner.f_back) is not None and _foreign.get(inner.f_code.co_filename):
            code = frame.f_code
            if _foreign.get(code.co_filename) is False:
                last, offset = self._last, frame.f_lasti
                if last is not None and last[0] is code and last[1] == offset:
                    return last
                self._last = last = code, offset
                return last
        return self._search()

    def _search(self) -> Place | None:
        depth, inner, frame, known = 0, True, sys._getframe(1).f_back, _foreign.get
        while frame is not None:  # through all frames, where none is the user's: so nothing is called twice
            code = frame.f_code
            foreign = known(code.co_filename)
            if foreign is None:
                foreign = is_foreign(code.co_filename)
            if inner and not foreign:
                self.depth = depth
                return code, frame.f_lasti
            depth, inner, frame = depth + 1, foreign, frame.f_back
        return None


def words(place: Place | None) -> str:
    """ "step at train.py:88"; "" for None."""
    if place is None:
        return ""
    code, offset = place
    return f"{_function(code)} at {shortened(code.co_filename)}:{_line(code, offset)}"


def _line(code: CodeType, offset: int) -> int:
    for start, stop, line in code.co_lines():
        if start <= offset < stop and line is not None:
            return line
    return code.co_firstlineno


def _function(code: CodeType) -> str:
    return "the script" if code.co_name == "<module>" else f"{code.co_name}()"


def shortened(file: str) -> str:
    """The path as the user would name it: relative to the working directory or to what is installed, if it lies there.

    Wherever a directory has been removed, its name is of no use, and the path stays as it is.
    """
    try:
        bases = (os.getcwd() + os.sep, os.path.dirname(OWN[:-1]) + os.sep, *_INSTALLED[:-2])
    except OSError:
        bases = _INSTALLED[:-2]
    return min((file.removeprefix(base) for base in bases), key=len)


def stack(thread: int) -> list[Frame]:
    """The Python stack of a thread, by its ident, the innermost frame first, down to where the user's code begins."""
    frame: FrameType | None = sys._current_frames().get(thread)
    frames: list[Frame] = []
    while frame is not None and not frame.f_code.co_filename.startswith(_LAUNCHER):
        code = frame.f_code
        line = frame.f_lineno or code.co_firstlineno
        frames.append(Frame(shortened(code.co_filename), line, code.co_name, not is_foreign(code.co_filename)))
        frame = frame.f_back
    while frames and not frames[-1].users and any(f.users for f in frames):
        frames.pop()
    return frames[:_MOST_FRAMES]


def frames_from(items: Any) -> list[Frame]:
    """Frames as another process, or a file, gives them; what is none is left out."""
    frames = []
    for item in items if isinstance(items, list) else ():
        match item:
            case [str(file), int(line), str(function), bool(users)]:
                frames.append(Frame(file, line, function, users))
    return frames
