"""One job from its start to its report."""

from __future__ import annotations

import contextlib
import selectors
import signal
import socket
import time
from pathlib import Path
from typing import Any

from superpod.interconnect.env import LauncherSettings
from superpod.launcher.clock_table import clock_table
from superpod.launcher.console import STDERR, Console
from superpod.launcher.crew import Crew, call_hosts
from superpod.launcher.directory import job_directory
from superpod.launcher.flight import FILE_NAME, write_record
from superpod.launcher.gather import Interrupted
from superpod.launcher.head import Head
from superpod.launcher.job import JobSpec
from superpod.launcher.limits import allow_files
from superpod.launcher.logs import LogFiles, Logs
from superpod.launcher.outcome import Outcome
from superpod.launcher.processes import age
from superpod.launcher.report import failure_report, summary, summary_table, write_summary
from superpod.launcher.signals import SignalInbox


def run_job(spec: JobSpec) -> int:
    """Run the job to its end and report. Returns the exit code of superpod-run.

    Raises InvalidValue, with nothing started, for what a host cannot do. Nothing of the job is left afterwards.
    """
    started = time.time() - age()
    settings = LauncherSettings.read()
    console = Console(colour=settings.colour)
    with SignalInbox().installed() as inbox, contextlib.ExitStack() as stack:
        selector = stack.enter_context(selectors.DefaultSelector())
        try:
            crew = stack.enter_context(contextlib.closing(_call(spec, selector, inbox)))
        except Interrupted as end:
            return 128 + end.signum
        spec = crew.spec
        allow_files(crew.local, spec.world_size)
        logs = Logs(spec, console, LogFiles(spec, console.say))
        with (
            job_directory(settings.runtime_directory) as directory,
            contextlib.closing(Head(spec, console, logs, inbox, selector)) as head,
        ):
            crew.join(head, directory)
            head.run()
            record, lost = _write_record(spec, head, console)
        logs.finish()
        code = _close_books(spec, head.outcome, started, console, logs, record)
        console.flush(inbox.fileno())
    return code or int(lost) or (128 + signal.SIGPIPE if console.closed else 0)


def _call(spec: JobSpec, selector: selectors.BaseSelector, inbox: SignalInbox) -> Crew:
    """The agents of all hosts. Raises InvalidValue, Interrupted."""
    if spec.nodes is not None and spec.nodes.count > 1:
        from superpod.launcher.node_crew import call_nodes  # loads ZeroMQ, for which other jobs need not wait

        return call_nodes(spec, spec.nodes, selector, inbox)
    return call_hosts(spec, selector, inbox)


def _write_record(spec: JobSpec, head: Head, console: Console) -> tuple[Path | None, bool]:
    """The flight record, if it was asked for or the job has failed; returns where it is, and whether it is lost."""
    outcome = head.outcome
    failed = outcome.first_failure() is not None or outcome.own_failure is not None
    if not failed and spec.record is None:
        return None, False
    record = head.flight_record("the job failed" if failed else "asked for with --record")
    if record is None:
        return None, False
    path = spec.record or (spec.log_dir / FILE_NAME if spec.log_dir is not None else None)
    try:
        return write_record(path, record), False
    except OSError as error:
        console.say(f"cannot write the flight record to {path or 'the temporary directory'}: {error.strerror}")
        return None, True


def _close_books(
    spec: JobSpec, outcome: Outcome, started: float, console: Console, logs: Logs, record: Path | None
) -> int:
    """Report and summary. Returns the exit code: the job's, or 1 when only the launcher's own writing failed."""
    code = outcome.exit_code
    first = outcome.first_failure()
    last_lines = logs.last_lines(first.rank) if first is not None else ""
    report = failure_report(outcome, socket.gethostname(), started, last_lines)
    if report and record is not None:
        report += f"  what the cards did last is in {record}; superpod-run --explain {record} puts it into words\n"
    console.headline(report)
    numbers = summary(outcome, started, time.time())
    if spec.summary:
        console.write(STDERR, summary_table(numbers).encode())
    if spec.machine.topology is not None:
        numbers["clock"] = _clock(spec, outcome, console)
    if spec.summary_json is not None:
        try:
            write_summary(spec.summary_json, numbers)
        except OSError as error:
            console.say(f"cannot write the summary to {spec.summary_json}: {error.strerror}")
            code = code or 1
    return code or bool(console.lost and not console.closed)


def _clock(spec: JobSpec, outcome: Outcome, console: Console) -> dict[str, Any]:
    """The modelled clock in numbers, after its table."""
    from superpod.launcher.clock_books import books  # loads the simulator

    numbers = books(spec.machine, outcome.clocks.logs(), outcome.operations, spec.world_size)
    if spec.machine.time_scale:
        numbers["shape"] = {"time_scale": spec.machine.time_scale, **outcome.clocks.shape}
    console.write(STDERR, clock_table(numbers).encode())
    return numbers
