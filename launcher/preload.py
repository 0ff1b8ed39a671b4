"""What the zygote imports before it forks, so that n cards do not each import it again.

Importing torch costs 1 to 2 s of processor time, torch._dynamo 1.3 s, scikit-learn 1 s: times 64 cards that would be
minutes. `plan` finds what a target imports by reading its source, never by running it. `load` imports that, and
notices what must not be shared: threads, which a fork loses, and a look at RANK, which only a card has.
"""

from __future__ import annotations

import ast
import contextlib
import gc
import importlib
import os
import re
import sys
import sysconfig
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path

from superpod.interconnect.env import noticing_card_variables

_MAX_FILES = 300  # of the user's own code; more are not read
_MAX_SOURCE = 1 << 20  # bytes; a longer file is data, not code
_NUMPY_USERS = ("superpod.collectives.communicator",)
_TORCH_USERS = ("superpod.collectives.torch_backend",)
_READY_FOR_A_FORK = (
    "jemalloc_bg_thd",
)  # threads by name whose library does without them in a child, as pyarrow's does
_LIBRARIES = (sysconfig.get_path("stdlib"), sysconfig.get_path("platstdlib"), str(Path(__file__).parents[1]))
_HOLD_STATEMENTS = (ast.stmt, ast.ExceptHandler, ast.match_case)
_NAMES_TORCH = re.compile(rb"""["']torch["'.]""")  # as importlib.import_module("torch") would
# What drags in torch._dynamo when it is used: every optimizer's constructor, DDP's and FSDP's, torch.compile. A wrong
# guess costs 1.3 s once; a missed one costs it in every card.
_USES_DYNAMO = re.compile(
    rb"\boptim\b|Optimizer\b|DistributedDataParallel|\bDDP\b|FullyShardedDataParallel|\bFSDP|\bfully_shard\b"
    rb"|\bcompile\b|\bTrainer\b"
)


def plan(target: str, *, module: bool) -> list[str]:
    """The installed modules that a script (or, with `module`, a module) and the user's own files under it import.

    The user's own files are followed, not listed: they are to be run in the cards only. torch comes with the modules
    that its users need at once; those that do not need it come before it, so that they lie side by side in memory and
    not in the gaps that it leaves (a card that uses them copies 0.5 MB less).
    """
    home = home_of(target, module=module)
    queue = [home_file for home_file in (_main_files(target, home) if module else [target]) if home_file]
    found: dict[str, None] = {}
    sources = b"\n".join(_own_sources(queue, home, found))
    names = list(found)
    if "torch" in found or _NAMES_TORCH.search(sources):
        names = [*_NUMPY_USERS, "torch", *_TORCH_USERS, *names]
        if _USES_DYNAMO.search(sources):
            names.append("torch._dynamo")
    elif "superpod" in found:
        names = [*_NUMPY_USERS, *names]
    return list(dict.fromkeys(names))


def home_of(target: str, *, module: bool) -> str:
    """The directory that Python puts in front of sys.path."""
    return os.getcwd() if module else os.path.dirname(os.path.realpath(target))


def _main_files(module: str, home: str) -> list[str | None]:
    """The files that `python -m module` runs: the module and the packages around it."""
    names = [*_with_packages(module), f"{module}.__main__"]
    return [_file_of(locate(name, [home, *sys.path])) for name in names]


def _own_sources(queue: list[str], home: str, found: dict[str, None]) -> Iterator[bytes]:
    """The sources of the files in `queue` and of the user's own files they import; installed imports go to `found`."""
    seen = set(queue)
    while queue and len(seen) <= _MAX_FILES:
        file = queue.pop(0)
        source = _read(file)
        yield source
        for level, name in imports(source):
            spec = locate(name, _folders_above(file, level) if level else [home, *sys.path])
            own = _file_of(spec)
            if spec is not None and _is_installed(spec):
                if not level:
                    found[name] = None
            elif own is not None and own not in seen:
                seen.add(own)
                queue.append(own)


def _folders_above(file: str, level: int) -> list[str]:
    """Where `from . import` in `file` looks, with `level` dots."""
    return [str(folder) for folder in Path(file).absolute().parents[level - 1 : level]]


def imports(source: bytes) -> list[tuple[int, str]]:
    """What `source` imports anywhere but under `if TYPE_CHECKING`: (0, "package.module"); (1, "name") for `from .`.

    A package comes before its modules. What `from package import name` names may be a module or not. Source that does
    not compile imports nothing.
    """
    try:
        nodes: deque[ast.AST] = deque([ast.parse(source)])
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return []
    found: list[tuple[int, str]] = []
    while nodes:
        node = nodes.popleft()
        if isinstance(node, ast.Import):
            found += [(0, name) for alias in node.names for name in _with_packages(alias.name)]
        elif isinstance(node, ast.ImportFrom):
            start = [node.module] if node.module else []
            full = [".".join([*start, alias.name]) for alias in node.names if alias.name != "*"] or start
            found += [(node.level, name) for dotted in full for name in _with_packages(dotted)]
        elif isinstance(node, ast.If) and _name_of(node.test) == "TYPE_CHECKING":
            nodes += node.orelse
        else:
            nodes += (child for child in ast.iter_child_nodes(node) if isinstance(child, _HOLD_STATEMENTS))
    return list(dict.fromkeys(found))


def _name_of(node: ast.expr) -> str:
    """ "c" of c and of a.b.c; "" of anything else."""
    return node.id if isinstance(node, ast.Name) else node.attr if isinstance(node, ast.Attribute) else ""


def _with_packages(name: str) -> list[str]:
    parts = name.split(".")
    return [".".join(parts[: depth + 1]) for depth in range(len(parts))]


def locate(name: str, path: list[str]) -> ModuleSpec | None:
    """Where module `name` lies, found without importing its packages. None also for what is built in."""
    where: list[str] | None = path
    spec: ModuleSpec | None = None
    for full in _with_packages(name):
        spec = PathFinder.find_spec(full, where) if where is not None else None
        if spec is None:
            return None
        where = None if spec.submodule_search_locations is None else list(spec.submodule_search_locations)
    return spec


def is_installed(file: str) -> bool:
    """Whether a file belongs to the standard library, an installed package or superpod, not to the user's own code."""
    parts = Path(file).parts
    if "site-packages" in parts or "dist-packages" in parts:
        return True
    return any(file.startswith(folder + os.sep) for folder in _LIBRARIES)


def _is_installed(spec: ModuleSpec) -> bool:
    places = [spec.origin] if spec.has_location and spec.origin else list(spec.submodule_search_locations or ())
    return bool(places) and all(is_installed(place) for place in places)


def _file_of(spec: ModuleSpec | None) -> str | None:
    return spec.origin if spec is not None and spec.has_location else None


def _read(file: str) -> bytes:
    with contextlib.suppress(OSError):
        if file.endswith(".py") and os.path.getsize(file) <= _MAX_SOURCE:
            return Path(file).read_bytes()
    return b""


@dataclass(frozen=True, slots=True)
class Loaded:
    """What came of an attempt to load modules.

    Attributes:
        refused: module → why it must not be loaded before a fork.
        failed: module → the error that its import raised.
    """

    refused: dict[str, str]
    failed: dict[str, str]


def load(names: Iterable[str]) -> Loaded:
    """Import `names` into this process; what fails is left to the cards."""
    threads: list[str] = []
    refused: dict[str, str] = {}
    failed: dict[str, str] = {}
    gc.disable()  # nothing of what is imported becomes garbage; torch loads in three quarters of the time
    with noticing_card_variables() as asked:
        for name in names:
            before = _threads()
            asked.clear()
            try:
                importlib.import_module(name)
            except BaseException as error:  # noqa: BLE001  # also SystemExit: a module must not end the zygote
                failed[name] = f"{type(error).__name__}: {error}"
            if asked:
                refused[name] = f"it asks for {', '.join(sorted(asked))} while it is imported"
            if _threads() > before:
                threads.append(name)
    gc.enable()
    if threads and _threads_after_fork() > 1:
        refused |= dict.fromkeys(threads, "it starts a thread, which a fork would lose")
    return Loaded(refused, failed)


def forget_shadowed(home: str, startup: frozenset[str]) -> None:
    """Drop from sys.modules what a file in `home` shadows, so that a card's `import queue` finds the user's queue.py.

    What Python itself had loaded before the first line (`startup`) stays, as it does for `python script.py`.
    """
    for name in {name.partition(".")[0] for name in sys.modules} - startup:
        spec = PathFinder.find_spec(name, [home])
        loaded = getattr(sys.modules.get(name), "__file__", None)
        if spec is None or not spec.has_location or spec.origin == loaded:
            continue
        for known in [known for known in sys.modules if known == name or known.startswith(name + ".")]:
            del sys.modules[known]


def _threads() -> int:
    """How many this process has, without those that no child misses."""
    names = (Path(f"/proc/self/task/{thread}/comm") for thread in os.listdir("/proc/self/task"))
    return sum(_read_quietly(name) not in _READY_FOR_A_FORK for name in names)


def _read_quietly(file: Path) -> str:
    try:
        return file.read_text().strip()
    except OSError:  # the thread has ended meanwhile
        return ""


def _threads_after_fork() -> int:
    """Threads still there after a fork: OpenBLAS and others stop theirs before it and start them again when needed."""
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)
    return _threads()
