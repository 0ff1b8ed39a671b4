"""The house rules as functions over source text: each returns one line for every place that breaks it.

They take the sources as a mapping of paths ("interconnect/units.py") to text, so that test_architecture.py can show
them the repository, which must pass, and made-up offenders, which must not.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

Sources = Mapping[str, str]

ROOT = Path(__file__).resolve().parent.parent
FLOORS = ("interconnect", "collectives", "launcher", "benchmarks", "simulator")  # ground first
READERS = ("collectives/verify.py", "collectives/execute.py", "collectives/simulate.py")
LINKS = ("interconnect/memory_link.py", "interconnect/zmq_link.py", "interconnect/shm_link.py")
ENV = "interconnect/env.py"
ENV_HOSTS = "interconnect/env_hosts.py"  # the part of it that concerns several hosts

# module → where alone it may be imported, as patterns of paths
HOMES = {
    "zmq": ("interconnect/zmq_*.py", "interconnect/rendezvous.py"),
    "torch": ("collectives/torch_backend*.py", "launcher/zygote*.py", "benchmarks/torch_*.py"),
    "pickle": ("launcher/testing.py",),
    "cloudpickle": ("launcher/testing.py",),
    "dill": (),
    "marshal": (),
    "shelve": (),
}
ALGORITHMS_MAY_IMPORT = re.compile(
    r"(__future__|collections|dataclasses|fractions|functools|itertools|math|typing|numpy"
    r"|superpod\.collectives\.(schedule|algorithms)|superpod\.interconnect\.(errors|units))\."
)
LONGEST_FILE, LONGEST_ALGORITHM, LONGEST_FUNCTION = 400, 120, 50  # lines


def product_sources() -> dict[str, str]:
    """What is installed: the four floors, by path; the public names in src/superpod/__init__.py are above them all."""
    return {p.relative_to(ROOT).as_posix(): p.read_text() for floor in FLOORS for p in (ROOT / floor).rglob("*.py")}


def imports(source: str) -> Iterator[tuple[int, str]]:
    """(line, name) of every import wherever it stands: `from a.b import c` gives "a.b.c"."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = "." * node.level + (node.module or "")
            yield from ((node.lineno, f"{base}.{alias.name}") for alias in node.names)


def own_imports(sources: Sources, path: str) -> Iterator[tuple[int, str]]:
    """(line, path) of every import in `path` of another file among `sources`."""
    for line, name in imports(sources[path]):
        parts = name.split(".")
        modules = ("/".join(parts[1:]), "/".join(parts[1:-1])) if parts[0] == "superpod" else ()
        files = (file for module in modules for file in (f"{module}.py", f"{module}/__init__.py"))
        if (other := next((file for file in files if file in sources), path)) != path:
            yield line, other


def imports_point_down(sources: Sources) -> list[str]:
    """A floor imports itself and the floors below it, by full name; never the public names on top."""
    found = []
    for path, source in sources.items():
        allowed = ("__version__", *FLOORS[: FLOORS.index(path.split("/")[0]) + 1])
        for line, name in imports(source):
            head, _, rest = name.partition(".")
            if head == "" or head in FLOORS:
                found.append(f"{path}:{line} imports {name}: write the full name, superpod.<floor>.<module>")
            elif head == "superpod" and rest.split(".")[0] not in allowed:
                found.append(f"{path}:{line} imports {name}: of superpod it may import only {', '.join(allowed)}")
    return found


def imports_make_no_cycle(sources: Sources) -> list[str]:
    """Within a floor, too, there is an order: no file imports, through others, itself."""
    needs = {path: {other for _, other in own_imports(sources, path)} for path in sources}
    while free := [path for path, others in needs.items() if not others & needs.keys()]:
        for path in free:
            del needs[path]
    return [f"{path} is in or above a cycle with {', '.join(sorted(needs[path] & needs.keys()))}" for path in needs]


def strangers_stay_strangers(sources: Sources) -> list[str]:
    """The readers of a schedule know nothing of one another, nor do the links; errors.py needs nobody."""
    groups = [READERS, LINKS]
    found = []
    for path in sources:
        strangers = {other for group in groups if path in group for other in group}
        if path == "interconnect/errors.py":
            strangers = set(sources)
        for line, other in own_imports(sources, path):
            if other in strangers:
                found.append(f"{path}:{line} imports {other}, which it must not know")
    return found


def modules_stay_at_home(sources: Sources) -> list[str]:
    """zmq, torch and the picklers are imported in the files of HOMES only."""
    found = []
    for path, source in sources.items():
        for line, head in sorted({(line, name.split(".")[0]) for line, name in imports(source)}):
            homes = HOMES.get(head)
            if homes is not None and not any(Path(path).match(home) for home in homes):
                found.append(f"{path}:{line} imports {head}: allowed in {', '.join(homes) or 'no file'}")
    return found


def algorithms_are_pure(sources: Sources) -> list[str]:
    """An algorithm knows schedules and arithmetic; no sockets, threads, tensors, clocks; the registry may."""
    found = []
    for path, source in sources.items():
        if path.startswith("collectives/algorithms/") and not path.endswith("/__init__.py"):
            found += [
                f"{path}:{line} imports {name}: no business of an algorithm"
                for line, name in imports(source)
                if not ALGORITHMS_MAY_IMPORT.match(name + ".")
            ]
    return found


def sizes_fit(sources: Sources) -> list[str]:
    """No file, algorithm or function beyond the lengths above."""
    found = []
    for path, source in sources.items():
        longest = LONGEST_ALGORITHM if path.startswith("collectives/algorithms/") else LONGEST_FILE
        if (lines := len(source.splitlines())) > longest:
            found.append(f"{path} has {lines} lines, more than {longest}")
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                lines = (node.end_lineno or node.lineno) - node.lineno + 1
                if lines > LONGEST_FUNCTION:
                    found.append(f"{path}:{node.lineno} {node.name} has {lines} lines, more than {LONGEST_FUNCTION}")
    return found


def docstrings_exist(sources: Sources) -> list[str]:
    """Every file says what it is. In interconnect and collectives every public function and class does, or stands by
    name in the docstring of its file, as an algorithm's collectives do.
    """
    found = []
    for path, source in sources.items():
        module = ast.parse(source)
        about = ast.get_docstring(module) or ""
        if module.body and not about:
            found.append(f"{path} has no docstring")
        if path.split("/")[0] in ("interconnect", "collectives"):
            found += [
                f"{path}:{node.lineno} {node.name} has no docstring, and that of the file does not name it"
                for node in module.body
                if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
                and not node.name.startswith("_")
                and not ast.get_docstring(node)
                and not re.search(rf"\b{node.name}\b", about)
            ]
    return found


def environment_is_documented(sources: Sources) -> list[str]:
    """Every SUPERPOD_ variable that a file names stands in env.py's docstring, and it or env_hosts.py uses each."""
    contract = ast.get_docstring(ast.parse(sources[ENV]), clean=False) or ""
    code = sources[ENV].replace(contract, "") + sources.get(ENV_HOSTS, "")
    known = set(_variables(contract)) | {f"SUPERPOD_{name.upper()}" for name in _constant(sources[ENV], "COLLECTIVES")}
    found = [f"{ENV} documents {name} and does not use it" for name in sorted(_variables(contract)) if name not in code]
    for path, source in sources.items():
        for name in sorted(set(_variables(source)) - known):
            found.append(f"{path} names {name}, which the docstring of {ENV} does not")
    return found


def _variables(text: str) -> set[str]:
    return set(re.findall(r"\bSUPERPOD_[A-Z][A-Z0-9_]*\b", text))


def _constant(source: str, name: str) -> Iterable[str]:
    for node in ast.parse(source).body:
        if isinstance(node, ast.Assign) and any(isinstance(t, ast.Name) and t.id == name for t in node.targets):
            value: Iterable[str] = ast.literal_eval(node.value)
            return value
    return ()


def environment_is_read_in_one_place(sources: Sources) -> list[str]:
    """Only env.py reads the process's environment; the launcher may also write it, for the worker it becomes."""
    found = []
    for path, source in sources.items():
        if path == ENV:
            continue
        tree = ast.parse(source)
        writes = _environ_writes(tree) if path.startswith("launcher/") else set()
        for node in ast.walk(tree):
            if _is_environ(node) and node not in writes:
                found.append(f"{path}:{node.lineno} touches the environment: read it through {ENV}")
    return found


def _is_environ(node: ast.AST) -> bool:
    """os.environ, os.getenv and their kin, however they were imported."""
    names = {"environ", "environb", "getenv", "getenvb", "putenv", "unsetenv"}
    if isinstance(node, ast.Attribute):
        return node.attr in names and isinstance(node.value, ast.Name) and node.value.id in ("os", "posix")
    return isinstance(node, ast.ImportFrom) and node.module == "os" and any(a.name in names for a in node.names)


def _environ_writes(tree: ast.AST) -> set[ast.AST]:
    """The os.environ in `os.environ[name] = ...`, `del os.environ[name]`, `os.environ.update(...)`, .clear, .pop."""
    writes: set[ast.AST] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Subscript) and isinstance(node.ctx, ast.Store | ast.Del):
            writes.add(node.value)
        elif isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
            call = node.value.func
            if isinstance(call, ast.Attribute) and call.attr in ("update", "clear", "pop"):
                writes.add(call.value)
    return writes


def links_lead_home(package: Path) -> list[str]:
    """Every floor is a relative symbolic link in src/superpod to the folder of its name at the top."""
    found = []
    for floor in FLOORS:
        link, target = package / floor, f"../../{floor}"
        if not link.is_symlink():
            found.append(f"{link} is no symbolic link; restore it: ln -s {target} src/superpod/{floor}")
        elif link.readlink().as_posix() != target:
            found.append(f"{link} leads to {link.readlink()}, not to {target}")
    return found


def house() -> dict[str, str]:
    """path → its docstring's first line (else ""): what the README's tree must show, folders with a "/" at the end."""
    files = [p for p in ROOT.iterdir() if p.is_file() and p.suffix in ("", ".md", ".toml", ".txt") and p.name[0] != "."]
    for folder in (*FLOORS, "docs", "examples"):
        files += [p for p in (ROOT / folder).rglob("*") if p.suffix in (".py", ".c", ".h", ".toml", ".md")]
    files += [ROOT / "setup.py", ROOT / ".ci/run", ROOT / "src/superpod/__init__.py"]
    folders = {parent for file in files for parent in file.parents if parent.is_relative_to(ROOT) and parent != ROOT}
    paths = {file.relative_to(ROOT).as_posix(): _first_line(file) for file in files}
    return paths | {f"{folder.relative_to(ROOT).as_posix()}/": "" for folder in folders} | {"tests/": ""}


def _first_line(file: Path) -> str:
    docstring = ast.get_docstring(ast.parse(file.read_text())) if file.suffix == ".py" else None
    return (docstring or "").partition("\n")[0]


def tree_in(readme: str) -> dict[str, str]:
    """path → description, from the indented tree between ```text and ``` in the README (folders end in "/")."""
    block = re.search(r"```text\n(\S+/\s.*?)```", readme, re.DOTALL)
    paths: dict[str, str] = {}
    folders: list[tuple[int, str]] = []
    for line in (block[1] if block else "").splitlines():
        indent = len(line) - len(line.lstrip())
        name, _, description = line.strip().partition(" ")
        while folders and folders[-1][0] >= indent:
            folders.pop()
        path = "".join(folder for _, folder in folders) + name
        paths[path] = description.strip()
        if name.endswith("/"):
            folders.append((indent, name))
    return paths


def tree_is_true(readme: str, existing: Mapping[str, str]) -> list[str]:
    """The README's tree has every existing path, with a word on it, and no other. `existing`: path → what to write."""
    listed = tree_in(readme)
    found = [f"README.md: the tree lists {path}, which does not exist" for path in listed if path not in existing]
    found += [f"README.md: the tree lacks {p}  ({text})" for p, text in existing.items() if p not in listed]
    found += [f"README.md: the tree says nothing about {p}" for p, text in listed.items() if not text]
    return found


RULES: tuple[Callable[[Sources], list[str]], ...] = (
    imports_point_down,
    imports_make_no_cycle,
    strangers_stay_strangers,
    modules_stay_at_home,
    algorithms_are_pure,
    sizes_fit,
    docstrings_exist,
    environment_is_documented,
    environment_is_read_in_one_place,
)
