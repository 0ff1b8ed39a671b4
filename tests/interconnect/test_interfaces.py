from __future__ import annotations

import socket

import pytest

from superpod.interconnect import interfaces
from superpod.interconnect.env_hosts import BetweenHosts
from superpod.interconnect.errors import InvalidValue
from superpod.interconnect.interfaces import (
    Interface,
    candidates,
    check_ports,
    is_loopback,
    local_address,
    tcp_endpoint,
)
from superpod.interconnect.secret import JobSecret

HOST = [
    Interface("lo", "127.0.0.1"),
    Interface("docker0", "172.17.0.1"),
    Interface("eth0", "10.0.0.5"),
    Interface("eth1", "10.1.0.5"),
    Interface("ib0", "10.2.0.5"),
    Interface("lo", "::1"),
    Interface("eth1", "fd00::5"),
]


@pytest.fixture
def host(monkeypatch):
    monkeypatch.setattr(interfaces, "interfaces", lambda: HOST)


@pytest.mark.parametrize(
    ("choice", "address"),
    [
        (None, "10.0.0.5"),
        ("", "10.0.0.5"),
        ("eth1", "10.1.0.5"),
        ("eth", "10.0.0.5"),
        ("=eth1", "10.1.0.5"),
        ("ib,eth", "10.0.0.5"),
        ("lo", "127.0.0.1"),
        ("^eth,docker,lo", "10.2.0.5"),
        ("^=eth0,=lo,=docker0", "10.1.0.5"),
        ("eth,^eth0", "10.1.0.5"),
        ("eth0 , ^docker0", "10.0.0.5"),
        ("=ib0,eth", "10.2.0.5"),  # "=" holds for all that comes after it
        ("^=docker0,lo,eth", "10.0.0.5"),
        ("=eth,ib0,^lo", "10.2.0.5"),
    ],
)
def test_choices(host, choice, address):
    assert local_address(choice) == address


@pytest.mark.parametrize("choice", ["eth9", "=eth", "^eth,ib,lo,docker", "eth0,^eth", "=ib,eth"])
def test_a_choice_that_fits_none(host, choice):
    with pytest.raises(InvalidValue, match=r"fits none of this host's: lo \(127\.0\.0\.1\), .*; name some of"):
        local_address(choice)


def test_a_host_with_nothing_but_a_loopback(monkeypatch):
    monkeypatch.setattr(interfaces, "interfaces", lambda: HOST[:1])
    assert local_address() == "127.0.0.1"


def test_the_one_on_the_way_is_taken(host, monkeypatch):
    monkeypatch.setattr(interfaces, "_address_towards", lambda target: target)
    assert local_address("eth", "10.1.0.5") == "10.1.0.5"
    assert local_address("ib", "10.1.0.5") == "10.2.0.5"
    assert local_address("eth1", "fd00::99") == "fd00::5"  # the family counts if the way does not
    assert local_address(None, "10.9.0.9") == "10.9.0.9"


def test_this_hosts_own():
    every = interfaces.interfaces()
    assert Interface("lo", "127.0.0.1") in every
    assert not [i for i in every if i.address.startswith("fe80")]
    assert local_address("lo") == "127.0.0.1"
    assert local_address(None, "127.0.0.1") == local_address(None, "localhost") == "127.0.0.1"


def test_a_host_that_cannot_be_found():
    with pytest.raises(InvalidValue, match=r"host 'no\.such\.host\.invalid' cannot be found .*; give its address"):
        local_address(None, "no.such.host.invalid")


def test_a_host_to_which_there_is_no_way(monkeypatch):
    def connect(line, place):
        raise OSError(101, "Network is unreachable")

    monkeypatch.setattr(socket.socket, "connect", connect)
    with pytest.raises(InvalidValue, match=r"no way from this host to '192\.0\.2\.1' .*choose with --interface"):
        local_address(None, "192.0.2.1")


@pytest.mark.parametrize("text", ["0", "29600", "29600-29700", "1-65535", "80-80"])
def test_ports(text):
    assert check_ports(text) == text


@pytest.mark.parametrize("text", ["", "x", "-1", "65536", "10-9", "1-2-3", "0-10", "1-", " 1", "\u0661"])
def test_what_are_no_ports(text):
    with pytest.raises(InvalidValue, match=r"must (be a port or a range|not begin at port 0)"):
        check_ports(text)


def test_endpoints():
    assert tcp_endpoint("10.0.0.1") == "tcp://10.0.0.1:0"
    assert tcp_endpoint("fd00::1", "1-3") == "tcp://[fd00::1]:1-3"
    assert list(candidates("tcp://[fd00::1]:1-3")) == [f"tcp://[fd00::1]:{port}" for port in (1, 2, 3)]
    assert list(candidates("tcp://10.0.0.1:1-3", first=5)) == [f"tcp://10.0.0.1:{port}" for port in (3, 1, 2)]
    assert list(candidates("ipc:///tmp/a-b:1-2")) == ["ipc:///tmp/a-b:1-2"]
    assert list(candidates("tcp://10.0.0.1:7")) == ["tcp://10.0.0.1:7"]


def test_loopback():
    assert all(is_loopback(address) for address in ("127.0.0.1", "127.3.2.1", "::1", "localhost"))
    assert not any(is_loopback(address) for address in ("10.0.0.1", "::", "fd00::1", "node1"))


# The environment

WORLD = {"RANK": "0", "WORLD_SIZE": "8"}


@pytest.mark.parametrize(
    ("env", "several"),
    [
        ({}, False),
        (WORLD, False),
        ({**WORLD, "LOCAL_WORLD_SIZE": "8", "GROUP_WORLD_SIZE": "1"}, False),
        ({**WORLD, "LOCAL_WORLD_SIZE": "8", "MASTER_ADDR": "node1"}, False),
        ({**WORLD, "MASTER_ADDR": "127.0.0.1"}, False),
        ({**WORLD, "MASTER_ADDR": "node1"}, True),
        ({**WORLD, "LOCAL_WORLD_SIZE": "4"}, True),
        ({**WORLD, "LOCAL_WORLD_SIZE": "8", "GROUP_WORLD_SIZE": "2"}, True),
        ({**WORLD, "LOCAL_WORLD_SIZE": "8", "SUPERPOD_ADDRESS": "10.0.0.1"}, True),
        ({"MASTER_ADDR": "node1"}, False),
    ],
)
def test_whether_there_are_other_hosts(env, several):
    assert BetweenHosts.read(env).several is several


def test_what_the_environment_says():
    secret = JobSecret.new()
    env = {"SUPERPOD_SECRET": secret.text, "SUPERPOD_ADDRESS": "fd00::1", "SUPERPOD_PORTS": "29600-29700"}
    hosts = BetweenHosts.read({**env, "SUPERPOD_ENCRYPTION": "off"})
    assert hosts.secret == secret
    assert not hosts.encryption
    assert hosts.endpoint() == "tcp://[fd00::1]:29600-29700"
    assert secret.text not in repr(hosts)
    assert BetweenHosts.read({"SUPERPOD_INTERFACE": "lo"}).endpoint() == "tcp://127.0.0.1:0"


@pytest.mark.parametrize(
    ("env", "message"),
    [
        ({"SUPERPOD_ENCRYPTION": "no"}, r"SUPERPOD_ENCRYPTION='no': must be one of on, off"),
        ({"SUPERPOD_PORTS": "9-1"}, r"SUPERPOD_PORTS='9-1': must be a port or a range"),
        ({"SUPERPOD_SECRET": "hunter2"}, r"^SUPERPOD_SECRET: a job's secret of 7 characters must be 64 hexadecimal"),
    ],
)
def test_what_the_environment_must_not_say(env, message):
    with pytest.raises(InvalidValue, match=message) as error:
        BetweenHosts.read(env)
    assert "hunter2" not in str(error.value)
