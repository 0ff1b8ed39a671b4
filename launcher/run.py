"""One job from its start to its report."""

from __future__ import annotations

import contextlib
import resource
import signal
import socket
import time
from pathlib import Path

from superpod.interconnect.env import LauncherSettings
from superpod.interconnect.errors import InvalidValue
from superpod.launcher.agent import Agent
from superpod.launcher.console import STDERR, Console
from superpod.launcher.directory import job_directory
from superpod.launcher.flight import FILE_NAME, write_record
from superpod.launcher.job import JobSpec
from superpod.launcher.logs import LogFiles, Logs
from superpod.launcher.outcome import Outcome
from superpod.launcher.processes import age
from superpod.launcher.report import failure_report, summary, summary_table, write_summary
from superpod.launcher.signals import SignalInbox

_FILES_EACH = 7  # a card's pipes, log files, flight record and connections to the store; rounded up
_FILES_OWN = 256


def run_job(spec: JobSpec) -> int:
    """Run the job to its end and report. Returns the exit code of superpod-run.

    Raises InvalidValue, with nothing started, for what this host cannot do. Nothing of the job is left afterwards.
    """
    started = time.time() - age()
    settings = LauncherSettings.read()
    console = Console(colour=settings.colour)
    _allow_files(spec.world_size)
    logs = Logs(spec, console, LogFiles(spec, console.say))
    with SignalInbox().installed() as inbox:
        with (
            job_directory(settings.runtime_directory) as directory,
            contextlib.closing(Agent(spec, directory, console, logs, inbox)) as agent,
        ):
            agent.run()
            record = _write_record(spec, agent, console)
        logs.finish()
        code = _close_books(spec, agent.outcome, started, console, logs, record)
        console.flush(inbox.fileno())
    return code or (128 + signal.SIGPIPE if console.closed else 0)


def _write_record(spec: JobSpec, agent: Agent, console: Console) -> Path | None:
    """The flight record, if it was asked for or the job has failed; returns where it is."""
    outcome = agent.outcome
    failed = outcome.first_failure() is not None or outcome.own_failure is not None
    if not failed and spec.record is None:
        return None
    record = agent.flight_record("the job failed" if failed else "asked for with --record")
    if record is None:
        return None
    path = spec.record or (spec.log_dir / FILE_NAME if spec.log_dir is not None else None)
    try:
        return write_record(path, record)
    except OSError as error:
        console.say(f"cannot write the flight record to {path or 'the temporary directory'}: {error.strerror}")
        return None


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
    if spec.summary_json is not None:
        try:
            write_summary(spec.summary_json, numbers)
        except OSError as error:
            console.say(f"cannot write the summary to {spec.summary_json}: {error.strerror}")
            code = code or 1
    return code or bool(console.lost and not console.closed)


def _allow_files(world_size: int) -> None:
    """Raise the soft limit of open files as far as the job needs. Raises InvalidValue when the hard one forbids it."""
    needed = _FILES_EACH * world_size + _FILES_OWN
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < needed:
        raise InvalidValue(
            f"nproc_per_node={world_size} needs {needed} open files, and the hard limit is {hard}: "
            "raise it (ulimit -Hn) or start fewer cards"
        )
    if soft != resource.RLIM_INFINITY and soft < needed:
        resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))
