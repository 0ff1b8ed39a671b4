from __future__ import annotations

import re
from pathlib import Path

import pytest

from superpod.interconnect import env as env_module
from superpod.interconnect.env import (
    COLLECTIVES,
    VARIABLES,
    LauncherSettings,
    Place,
    Settings,
    cache_directory,
    unknown_variables,
)
from superpod.interconnect.errors import InvalidValue


def test_an_empty_environment_gives_the_defaults():
    assert Settings.read({}) == Settings()
    assert Settings.read({"SUPERPOD_LINK": "", "SUPERPOD_DIR": "", "SUPERPOD_STORE": ""}) == Settings()


def test_every_variable_is_read():
    settings = Settings.read(
        {
            "SUPERPOD_DIR": "/somewhere",
            "SUPERPOD_STORE": "ipc://somewhere/store",
            "SUPERPOD_LINK": "zmq",
            "SUPERPOD_ZMQ_TRANSPORT": "tcp",
            "SUPERPOD_DEBUG": "info",
            "SUPERPOD_TIMEOUT": "90s",
            "SUPERPOD_SEGMENT": "256K",
            "SUPERPOD_WINDOW": "1M",
            "SUPERPOD_WATCHDOG": "10",
            "SUPERPOD_RECORD": "64",
            "SUPERPOD_DETERMINISTIC": "1",
            "SUPERPOD_TUNING": "table.json",
            "SUPERPOD_SELECTION": "[true,null]",
            "SUPERPOD_ALL_REDUCE": "tree:0-65536;ring:65537-max",
        }
    )
    assert settings == Settings(
        directory=Path("/somewhere"),
        store="ipc://somewhere/store",
        link="zmq",
        transport="tcp",
        debug="info",
        timeout=90.0,
        segment=256 << 10,
        window=1 << 20,
        watchdog=10.0,
        record=64,
        deterministic=True,
        tuning="table.json",
        selection="[true,null]",
        overrides={"all_reduce": "tree:0-65536;ring:65537-max"},
    )


def test_the_cache_lies_where_xdg_says_or_at_home():
    assert cache_directory({"XDG_CACHE_HOME": "/a/b"}) == Path("/a/b/superpod")
    assert cache_directory({}) == Path.home() / ".cache/superpod"
    assert cache_directory({"XDG_CACHE_HOME": "a/b"}) is None


def test_what_a_launcher_has_told_its_cards_is_no_setting_for_another_launchers():
    environ = {"SUPERPOD_TUNING": "off", "SUPERPOD_SELECTION": "[true,null]", "SUPERPOD_DIR": "/d"}
    assert env_module.travelling_environment(environ) == {"SUPERPOD_TUNING": "off"}
    card = env_module.worker_environment(Place(0, 1, 0, 1), directory=Path("/d"), store="s", master_port=1, environ={})
    assert card["SUPERPOD_SELECTION"] == ""


def test_the_process_environment_is_the_default(monkeypatch):
    monkeypatch.setenv("SUPERPOD_TIMEOUT", "7")
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert Settings.read().timeout == 7
    assert Place.read().rank == 1


@pytest.mark.parametrize("collective", COLLECTIVES)
def test_every_collective_has_its_variable(collective):
    assert Settings.read({f"SUPERPOD_{collective.upper()}": "ring"}).overrides == {collective: "ring"}


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("SUPERPOD_LINK", "shared", r"SUPERPOD_LINK='shared': must be one of .*zmq"),
        ("SUPERPOD_ZMQ_TRANSPORT", "udp", r"SUPERPOD_ZMQ_TRANSPORT='udp': must be one of ipc, tcp"),
        ("SUPERPOD_DEBUG", "1", r"SUPERPOD_DEBUG='1': must be one of off, info"),
        ("SUPERPOD_TIMEOUT", "soon", r"SUPERPOD_TIMEOUT='soon': duration 'soon' must be a number"),
        ("SUPERPOD_TIMEOUT", "0", r"SUPERPOD_TIMEOUT='0' must be at least 0\.1 s, .*such as 30s"),
        ("SUPERPOD_TIMEOUT", "10us", r"SUPERPOD_TIMEOUT='10us' must be at least 0\.1 s"),
        ("SUPERPOD_RECORD", "many", r"SUPERPOD_RECORD='many': must be a whole number"),
        ("SUPERPOD_DETERMINISTIC", "yes", r"SUPERPOD_DETERMINISTIC='yes': must be one of 0, 1"),
        ("SUPERPOD_SEGMENT", "big", r"SUPERPOD_SEGMENT='big': size 'big' must be a number"),
        ("SUPERPOD_SEGMENT", "512", r"SUPERPOD_SEGMENT=512 must lie between 1K and 64M"),
        ("SUPERPOD_SEGMENT", "65M", r"SUPERPOD_SEGMENT=68157440 must lie between 1K and 64M"),
        ("SUPERPOD_WINDOW", "4K", r"SUPERPOD_WINDOW=4096 must be at least SUPERPOD_SEGMENT=1048576"),
        ("SUPERPOD_WATCHDOG", "on", r"SUPERPOD_WATCHDOG='on': duration 'on' must be a number"),
        ("SUPERPOD_RECORD", "-1", r"SUPERPOD_RECORD=-1 must lie between 0 \(off\) and 1048576 calls"),
    ],
)
def test_a_wrong_value_is_refused_by_name(name, value, message):
    with pytest.raises(InvalidValue, match=message):
        Settings.read({name: value})


def test_place_as_torchrun_says_it():
    env = {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "4"}
    assert Place.read(env) == Place(5, 8, 1, 4)
    assert Place.read({"RANK": "5", "WORLD_SIZE": "8"}) == Place(5, 8, 5, 8)  # one host


def test_alone_is_the_world_of_one():
    assert Place.read({}) == Place(0, 1, 0, 1)


@pytest.mark.parametrize(
    "env",
    [
        {"RANK": "0"},
        {"WORLD_SIZE": "2"},
        {"RANK": "2", "WORLD_SIZE": "2"},
        {"RANK": "-1", "WORLD_SIZE": "2"},
        {"RANK": "0", "WORLD_SIZE": "0"},
    ],
)
def test_half_a_place_is_refused(env):
    with pytest.raises(
        InvalidValue, match=r"^RANK.* and WORLD_SIZE.*: both must be set with 0 <= RANK < WORLD_SIZE; start"
    ):
        Place.read(env)


def test_what_is_not_set_is_said_to_be_unset():
    with pytest.raises(InvalidValue, match=r"^RANK unset and WORLD_SIZE=2: both"):
        Place.read({"WORLD_SIZE": "2"})


@pytest.mark.parametrize("name", ["RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"])
def test_a_place_that_is_no_number_is_refused_by_name(name):
    with pytest.raises(InvalidValue, match=f"^{name}='zero': must be a whole number, such as 4$"):
        Place.read({"RANK": "1", "WORLD_SIZE": "2", name: "zero"})


def test_a_number_of_cards_that_is_no_number_is_refused_by_name():
    with pytest.raises(InvalidValue, match=r"^PET_NPROC_PER_NODE='x': must be a whole number"):
        LauncherSettings.read({"PET_NPROC_PER_NODE": "x"})


def test_a_place_of_the_scripts_own_is_told_from_the_launchers(monkeypatch):
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert Place(1, 4, 1, 4).is_the_launchers()
    assert not Place(1, 2, 1, 2).is_the_launchers()
    monkeypatch.setenv("RANK", "none")
    assert not Place(1, 4, 1, 4).is_the_launchers()


def test_unknown_variables_are_named_with_the_nearest_known_one():
    env = {"SUPERPOD_ALLREDUCE": "ring", "SUPERPOD_HUE": "red", "SUPERPOD_LINK": "zmq", "OTHER": "1"}
    assert unknown_variables(env) == {"SUPERPOD_ALLREDUCE": "SUPERPOD_ALL_REDUCE", "SUPERPOD_HUE": None}


def test_the_list_of_variables_is_that_of_the_documentation():
    documented = set(re.findall(r"SUPERPOD_[A-Z_]+", env_module.__doc__)) - {"SUPERPOD_"}
    assert documented == set(VARIABLES) - {f"SUPERPOD_{c.upper()}" for c in COLLECTIVES}
