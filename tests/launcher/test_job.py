"""JobSpec and the command line: what is refused, with which words, and that nothing is started for it."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest

from superpod.interconnect.errors import InvalidValue
from superpod.launcher import options
from superpod.launcher.hosts import Host
from superpod.launcher.job import JobSpec, StreamChoice


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "script.py").write_text("")
    (tmp_path / "folder").mkdir()
    return tmp_path


def spec(*args):
    return options.job_from(options.parser().parse_args(args))


def words(value):
    return " ".join(value) if isinstance(value, list) else ""


REFUSED = [
    (["-n", "0", "script.py"], r"nproc_per_node=0 must be at least 1; start n cards with -n n"),
    (["-n", "-3", "script.py"], r"nproc_per_node=-3 must be at least 1"),
    (["gone.py"], r"script gone.py does not exist; looked for it in /"),
    (["folder"], r"script folder is a directory; name a file in it, or start a package with -m"),
    (["-m", "no_such_module"], r"module 'no_such_module' was not found: 'no_such_module' must lie in /"),
    (["-m", "script.py"], r"module 'script.py' was not found: 'script' is a module, no package; a path goes without"),
    (["-m", "./script"], r"module './script' must be a dotted name, such as package.module; a path goes without -m"),
    (["--no-python", "no_such_program"], r"program 'no_such_program' must be an executable file, by its path or on P"),
    (["--grace", "-1", "script.py"], r"grace=-1.0 must be a number of seconds, 0 or more"),
    (["--grace", "nan", "script.py"], r"grace=nan must be a number of seconds"),
    (["--grace", "1e300", "script.py"], r"grace=1e\+300 must be a number of seconds, 0 or more, at most 1000000"),
    (["--host-timeout", "1e300", "script.py"], r"--host-timeout 1e\+300 must be 1 second .* at most 1000000"),
    (["-n", "2", "--local-ranks-filter", "0,2", "script.py"], r"rank 2 does not exist: with -n 2 --local-ranks-filter"),
    (["--local-ranks-filter", "a", "script.py"], r"--local-ranks-filter 'a' must be ranks with commas between them"),
    (["--log-dir", "", "script.py"], r"--log-dir '' must be a folder, such as logs; leave it out to keep no files"),
    (["--tee", "4", "--log-dir", "x", "script.py"], r"streams '4' must be 0 \(none\), 1 \(stdout\), 2 \(stderr\) or 3"),
    (["--tee", "7:1", "--log-dir", "x", "script.py"], r"rank 7 does not exist: with -n 1"),
    (["--tee", "3", "script.py"], r"--redirects and --tee must go with --log-dir DIR, where the files go"),
    (["-r", "0:1", "script.py"], r"--redirects and --tee must go with --log-dir DIR"),
    (["--preload", "json", "--start-method", "exec", "script.py"], r"--preload json must go with --start-method fork"),
    (["--preload", "json", "--no-python", "ls"], r"--preload json must go with --start-method fork and a Python targ"),
    (["--workdir", "/gone", "/bin/sh"], r"--workdir /gone must be a directory that you can enter; make it, or name an"),
    (["--workdir", "script.py", "/bin/sh"], r"--workdir /.*/script.py must be a directory that you can enter"),
    (["--summary-json", "gone/file", "script.py"], r"summary file gone/file must be a file in a folder that can be wr"),
    (["--summary-json", "x", "--record", "./x", "script.py"], r"summary file x and record file x must be two files"),
    (["--summary-json", "folder", "script.py"], r"summary file folder must be a file"),
]


@pytest.mark.parametrize(("args", "message"), REFUSED, ids=words)
def test_refused(folder, args, message):
    with pytest.raises(InvalidValue, match=message):
        spec(*args)


NODES = ["--nnodes", "2", "--node-rank", "0", "--rdzv-endpoint", "127.0.0.1:29400", "--nproc-per-node", "2"]
OF_ALL_NODES = [
    (["--local-ranks-filter", "3"], r"rank 3 does not exist: with -n 3 "),
    (["--tee", "3:3", "--log-dir", "x"], r"rank 3 does not exist: with -n 3 "),
    (["--topology", "mi300x", "--placement", "0,1,2,3"], r"placement lists 4 cards and the job has 3 ranks"),
]


@pytest.mark.parametrize(("args", "message"), OF_ALL_NODES, ids=words)
def test_what_names_ranks_of_all_nodes_is_checked_when_they_have_joined(folder, args, message):
    job = spec(*NODES, *args, "script.py")
    whole = replace(job, hosts=(Host("a", 2), Host("b", 2)), world_size=4)
    assert (job.world_size, whole.sizes) == (2, (2, 2))
    with pytest.raises(InvalidValue, match=message):
        replace(job, hosts=(Host("a", 2), Host("b", 1)), world_size=3)


@pytest.mark.parametrize("field", ["kind", "start_method"])
def test_refused_by_name(folder, field):
    with pytest.raises(InvalidValue, match=f"{field}='x' must be one of "):
        JobSpec("script.py", **{field: "x"})


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read and write everything")
def test_unreadable(folder):
    (folder / "script.py").chmod(0)
    with pytest.raises(InvalidValue, match=r"script script.py must be readable by you"):
        spec("script.py")


def test_everything_after_the_script_is_the_scripts(folder):
    job = spec("-n", "2", "script.py", "-n", "5", "--", "--summary", "-m")
    assert (job.world_size, job.args, job.summary) == (2, ("-n", "5", "--", "--summary", "-m"), False)
    job = spec("-m", "json.tool", "--help")
    assert (job.kind, job.target, job.args) == ("module", "json.tool", ("--help",))
    job = spec("--no-python", "sh", "-c", "exit 1")
    assert (job.kind, job.args) == ("program", ("-c", "exit 1"))


def test_spellings_of_torchrun(folder):
    job = spec("--nproc_per_node=3", "--log_dir", "x", "--local_ranks_filter=1", "-t", "1:3", "-r", "0:1", "script.py")
    assert (job.world_size, job.log_dir, job.shown_ranks) == (3, Path("x"), frozenset({1}))
    assert job.tee == StreamChoice(0, {1: 3})
    assert job.redirects == StreamChoice(0, {0: 1})


def test_number_of_cards_from_the_environment(folder, monkeypatch):
    assert spec("script.py").world_size == 1
    monkeypatch.setenv("PET_NPROC_PER_NODE", "5")
    assert spec("script.py").world_size == 5
    assert spec("-n", "2", "script.py").world_size == 2
    monkeypatch.setenv("PET_NPROC_PER_NODE", "many")
    with pytest.raises(InvalidValue, match="PET_NPROC_PER_NODE='many'"):
        spec("script.py")


def test_stream_choice():
    both, some = StreamChoice.parse("3"), StreamChoice.parse("0:3,2:1")
    assert all(both.has(rank, stream) for rank in range(3) for stream in (1, 2))
    assert [[some.has(rank, stream) for stream in (1, 2)] for rank in range(3)] == [
        [True, True],
        [False, False],
        [True, False],
    ]
    assert not StreamChoice.parse("0")
    assert not StreamChoice.parse("1:0")
    assert some


COMMANDS = [
    (["-n", "0", "script.py"], 2, "superpod-run: nproc_per_node=0 must be at least 1; start n cards with -n n\n"),
    (["-n", "x", "script.py"], 2, "argument -n/--np: invalid int value: 'x'"),
    ([], 2, "the following arguments are required: script"),
    (["--frobnicate", "script.py"], 2, "unrecognized arguments|the following arguments are required|expected"),
    (["gone.py"], 2, "superpod-run: script gone.py does not exist; looked for it in "),
    (["/bin/sh"], 2, "superpod-run: script /bin/sh is not Python source; start other programs with --no-python\n"),
    (["-n", "100000000", "script.py"], 2, "nproc_per_node=100000000 needs 700000256 open files, and the hard limit is"),
    (
        ["--log-dir", "script.py", "script.py"],
        2,
        "log directory script.py must be one that can be written: File ex",
    ),
    (["--workdir", "/gone", "/bin/true"], 2, "superpod-run: --workdir /gone must be a directory that you can enter;"),
    (["--log-dir", "/proc/x", "script.py"], 2, "log directory /proc/x must be one that can be written: No such file"),
]


@pytest.mark.parametrize(("args", "code", "message"), COMMANDS, ids=words)
def test_usage_errors_start_nothing(launch, args, code, message):
    launch.script("script.py", "print('started')\n")
    ended = launch(*args)
    assert (ended.code, ended.out) == (code, "")
    assert any(part in ended.err for part in message.split("|"))
    assert "Traceback" not in ended.err


def test_wrong_settings_start_nothing(launch):
    launch.script("script.py", "print('started')\n")
    ended = launch("-n", "4", "script.py", env={"SUPERPOD_LINK": "wire"})
    assert (ended.code, ended.out) == (2, "")
    assert ended.err == "superpod-run: SUPERPOD_LINK='wire': must be one of auto, zmq, shm\n"


def test_a_syntax_error_is_shown_once(launch):
    launch.script("script.py", "print('started')\nif True\n    pass\n")
    ended = launch("-n", "4", "script.py")
    assert (ended.code, ended.out) == (1, "")
    assert ended.err.count("SyntaxError: expected ':'") == 1
    assert f'  File "{launch.folder}/script.py", line 2\n' in ended.err


def test_no_room_for_the_jobs_directory(launch):
    launch.script("script.py", "")
    deep = launch.folder / ("d" * 80)
    deep.mkdir()
    ended = launch("script.py", env={"XDG_RUNTIME_DIR": str(deep), "TMPDIR": str(deep)})
    assert ended.code == 0  # /tmp is left


def test_version_and_help(launch):
    assert launch("--version").out.startswith("superpod ")
    text = launch("--help").out
    assert "everything after it belongs to the script" in text.replace("\n", " ")
