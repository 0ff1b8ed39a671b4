"""superpod-run's options for the machine that the cards stand for: what follows from them, and what is refused."""

from __future__ import annotations

import pytest

from superpod.interconnect.env import Settings
from superpod.interconnect.errors import InvalidValue
from superpod.launcher.machine import MachineSpec, WhatIf, machine_spec
from superpod.launcher.options import job_from, parser

NO_LINK = 'cards = 3\n[[links]]\nname = "c"\nbandwidth = "1GB/s"\npairs = [["0", "1"]]\n'
NEGATIVE = '[[level]]\nname = "a"\nkind = "ring"\nsize = 4\nbandwidth = "-1GB/s"\n'


@pytest.fixture
def job(tmp_path, monkeypatch):
    """The JobSpec of a command line whose script exists."""
    (tmp_path / "s.py").touch()
    (tmp_path / "nolink.toml").write_text(NO_LINK)
    (tmp_path / "negative.toml").write_text(NEGATIVE)
    monkeypatch.chdir(tmp_path)
    return lambda *argv: job_from(parser().parse_args([*argv, "s.py"]))


def test_without_options_there_is_no_machine(job):
    assert job("-n", "2").machine == MachineSpec()
    assert not any(MachineSpec().environment().values())


def test_what_cards_are_to_get_counts_like_the_environment(job):
    spec = job("-n", "2", "-x", "SUPERPOD_TOPOLOGY=mi300x", "-x", "SUPERPOD_HBM=1G", "--hbm", "2G")
    assert (spec.machine.topology, spec.machine.hbm) == ("mi300x", 2 << 30)
    assert spec.variables()["SUPERPOD_HBM"] == str(2 << 30)


def test_everything_together(job):
    spec = job(
        *("-n", "4", "--topology", "mi300x", "--placement", "spread", "--what-if", "cards=8,algorithm=best"),
        *("--machine-fault", "straggler 7:2", "--machine-fault", "cut 0-1"),
        *("--what-if", "topology=nvl72", "--shape", "--time-scale", "500", "--hbm", "2GiB"),
    ).machine
    assert spec.what_if == (
        WhatIf("cards=8,algorithm=best", cards=8, algorithm="best"),
        WhatIf("topology=nvl72", topology="nvl72"),
    )
    settings = Settings.read(spec.environment())
    assert (settings.topology, settings.placement) == ("mi300x", "spread")
    assert (settings.time_scale, settings.hbm) == (500.0, 2 << 30)
    assert settings.machine_faults == "straggler 7:2, cut 0-1"


def test_a_file_is_found_wherever_a_card_goes(job, tmp_path):
    text = (NO_LINK.replace("= 3", "= 2")).encode()
    (tmp_path / "mine.toml").write_bytes(text)
    (tmp_path / "cards").write_text("1 0")
    spec = job("-n", "2", "--topology", "mine.toml", "--placement", "cards").machine
    assert spec.topology == str(tmp_path / "mine.toml")
    assert spec.placement == "1,0"


def test_the_environment_may_say_it(job, monkeypatch):
    for name, value in (
        ("TOPOLOGY", "mi300x"),
        ("PLACEMENT", "4,5"),
        ("TIME_SCALE", "10"),
        ("HBM", "1G"),
        ("MACHINE_FAULTS", "cut 0-1"),
    ):
        monkeypatch.setenv(f"SUPERPOD_{name}", value)
    spec = job("-n", "2").machine
    assert (spec.topology, spec.placement, spec.time_scale, spec.hbm) == ("mi300x", "4,5", 10.0, 1 << 30)
    assert spec.faults == "cut 0-1"
    assert job("-n", "2", "--topology", "torus", "--placement", "packed").machine.topology == "torus"


def test_shape_has_a_scale_of_its_own(job):
    assert job("-n", "2", "--topology", "mi300x", "--shape").machine.time_scale == 1000.0


MI = ("--topology", "mi300x")


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--topology", "mi400"], "topology 'mi400' is neither a file nor one of atlas-950"),
        (["--topology", "nolink.toml"], "nolink: card 0 has no way to card 2; add a link to one of them"),
        (["--topology", "negative.toml"], "negative.toml: level: bandwidth: rate '-1GB/s' must be a number above 0"),
        (["-n", "9", *MI], "9 cards are more than the 8 of mi300x; take fewer, or a topology with larger levels"),
        (["--topology", ""], "--topology '' must not be empty; leave it out"),
        ([*MI, "--placement", ""], "--placement '' must not be empty; leave it out"),
        ([*MI, "--shape", "--time-scale", ""], "--time-scale '' must not be empty; leave it out"),
        (["--hbm", ""], "--hbm '' must not be empty; leave it out"),
        ([*MI, "--machine-fault", ""], "--machine-fault '' must be a fault, such as 'straggler 7:2'; leave it out"),
        ([*MI, "--placement", "near"], "placement 'near' must be packed, spread, or the cards of ranks 0, 1, 2"),
        ([*MI, "--placement", "0-2"], "placement lists 3 cards and the job has 2 ranks; list 2 of them"),
        (["--placement", "spread"], "--placement spread must go with --topology T, whose cards it gives to the ranks"),
        (["--machine-fault", "cut 0-1"], "--machine-fault cut 0-1 must go with --topology T, which has it"),
        ([*MI, "--machine-fault", "broken 3"], "fault 'broken 3' must be one of cut, slow, straggler, dead and what"),
        ([*MI, "--machine-fault", "cut 0-9"], "cut: card '9' does not exist; cards are 0 to 7"),
        (["--shape"], "--shape must go with --topology T, whose links it imitates; T is a file or a preset"),
        (["--time-scale", "10", *MI], "--time-scale 10 must go with --shape: only shaped links take their time"),
        ([*MI, "--shape", "--time-scale", "0"], "--time-scale 0 must be a number above 0, such as 1000"),
        ([*MI, "--shape", "--time-scale", "-3"], "--time-scale -3 must be a number above 0, such as 1000"),
        ([*MI, "--shape", "--time-scale", "fast"], "--time-scale fast must be a number above 0, such as 1000"),
        ([*MI, "--shape", "--time-scale", "1e308"], "--time-scale 1e308 must be a number above 0, such as 1000"),
        ([*MI, "--machine-fault", "straggler 0:inf"], "straggler '0:inf' must be what it is about, a colon and a"),
        ([*MI, "--machine-fault", "cut 0-1, cut 1-0"], "cut '0-1' and cut '1-0' are about the same; leave one out"),
        (["--hbm", "0"], "--hbm 0 must be above 0 bytes, such as 2GiB; leave it out for no limit"),
        (["--hbm", "lots"], "--hbm: size 'lots' must be a number with K, M, G or T behind it"),
        (["--hbm", "8589934592G"], "--hbm: size '8589934592G' must be at most 1048576T; take fewer bytes"),
        (["--what-if", "cards=9"], "--what-if cards=9 must go with --topology T, to compare with"),
        ([*MI, "--what-if", "cards=9"], "--what-if cards=9: 9 cards are more than the 8 of mi300x; take fewer"),
        ([*MI, "--what-if", "cards=many"], "cards=many must be a whole number, at least 1"),
        ([*MI, "--what-if", "cards=0"], "cards=0 must be a whole number, at least 1"),
        ([*MI, "--what-if", "size=1M"], "--what-if 'size=1M' must say other cards, topology, placement, algorithm"),
        ([*MI, "--what-if", "cards=2,cards=3"], "each once: cards=1024,algorithm=best"),
        ([*MI, "--what-if", "algorithm=rign"], "algorithm=rign does not exist; there are best, "),
        ([*MI, "--placement", "3,4", "--what-if", "cards=4"], "is for 2 ranks and says nothing of 4; add placement="),
    ],
)
def test_what_cannot_be_is_refused(job, argv, message):
    with pytest.raises(InvalidValue) as refused:
        job("-n", "2", *argv)
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_budget_is_for_python():
    with pytest.raises(InvalidValue, match="--hbm 1G must go with a Python target"):
        machine_spec(None, None, [], shape=False, time_scale=None, hbm="1G").check(1, "program")


def test_shaped_links_are_on_one_host():
    spec = machine_spec("mi300x", None, [], shape=True, time_scale=None, hbm=None)
    with pytest.raises(InvalidValue, match="--shape must not go with 2 hosts: the cards of one host share"):
        spec.check(2, "script", 2)


@pytest.mark.parametrize("value", ["-1", "x", "inf", "1e308"])
def test_a_card_refuses_a_scale_that_is_none(value):
    with pytest.raises(InvalidValue, match=f"SUPERPOD_TIME_SCALE='{value}': must be a number, 0 \\(off\\) or more"):
        Settings.read({"SUPERPOD_TIME_SCALE": value})
