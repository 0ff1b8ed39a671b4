"""superpod-run: the command line → JobSpec → run.

What it needs is loaded only when it is called: a Ctrl-C in that tenth of a second ends it without a word, too.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence

from superpod.interconnect.errors import InvalidValue

_USAGE_ERROR, _INTERRUPTED = 2, 130


def main(argv: Sequence[str] | None = None) -> int:
    """superpod-run. Returns its exit code: that of the card that failed first, 128 + signal, 2 for a wrong use."""
    _open_standard_streams()
    try:
        return _run(argv)
    except InvalidValue as error:
        print(f"superpod-run: {error}", file=sys.stderr)
        return _USAGE_ERROR
    except SyntaxError as error:
        import traceback

        print("".join(traceback.format_exception_only(error)), end="", file=sys.stderr)
        return 1  # as Python does
    except KeyboardInterrupt:
        return _INTERRUPTED


def _run(argv: Sequence[str] | None) -> int:
    from superpod.launcher.job import compile_script
    from superpod.launcher.options import job_from, parser
    from superpod.launcher.run import run_job

    spec = job_from(parser().parse_args(argv))
    _check_environment(spec.reach.exports)
    if spec.kind == "script":
        compile_script(os.path.join(spec.reach.workdir, spec.target))  # n cards would show the same syntax error
    if spec.nodes is not None and spec.nodes.rank > 0:
        from superpod.launcher.node import run_node

        return run_node(spec, spec.nodes)
    return run_job(spec)


def _check_environment(exports: Mapping[str, str]) -> None:
    """Raises InvalidValue: n cards, to which `exports` go as well, would complain of the same wrong variable."""
    from superpod.interconnect.env import Settings, child_environment, unknown_variables

    environ = child_environment(exports)
    settings = Settings.read(environ)
    if settings.overrides:
        from superpod.collectives.select import Selector  # the launcher has no other use for the algorithms

        Selector(settings.overrides)
    for name, meant in unknown_variables(environ).items():
        hint = f"did you mean {meant}?" if meant else "`pydoc superpod.interconnect.env` lists those that there are"
        print(f"superpod-run: {name} is no variable of superpod's and changes nothing; {hint}", file=sys.stderr)


def _open_standard_streams() -> None:
    """Where a standard stream is closed, open /dev/null: or its number would go to a file or pipe of the launcher's."""
    for fd in (0, 1, 2):
        try:
            os.fstat(fd)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest free number: this one
