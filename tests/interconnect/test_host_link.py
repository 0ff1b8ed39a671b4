"""Hosts, addresses, and the link that is made of two. That it keeps the Link contract, test_link_contract.py says."""

from __future__ import annotations

import contextlib
import os
import socket

import pytest
from cards import GROUP, HOSTS, NEAR, SECRET, SOON, Card, dictionary, exit_code, forked, near_and_far, within

from superpod.interconnect.env_hosts import BetweenHosts
from superpod.interconnect.errors import InvalidValue, PeerLost
from superpod.interconnect.host import Address, host_id, join, split
from superpod.interconnect.host_link import for_several_hosts
from superpod.interconnect.keys import Keys
from superpod.interconnect.wire import Header, Kind, encode
from superpod.interconnect.zmq_link import ZmqLink


def test_a_host_is_the_same_in_all_its_processes():
    here = host_id()

    def compare() -> None:
        assert host_id() == here

    with forked(compare) as pid:
        assert exit_code(pid) == 0


@pytest.mark.skipif(os.geteuid() != 0, reason="making a network namespace takes root")
def test_another_network_namespace_is_another_host():
    here = host_id()

    def leave() -> None:
        import ctypes

        assert ctypes.CDLL(None).unshare(0x40000000) == 0  # CLONE_NEWNET
        assert host_id() != here

    with forked(leave) as pid:
        assert exit_code(pid) == 0


@pytest.mark.parametrize(
    "address",
    [
        Address("ipc:///tmp/a", "00ff", "host/1"),
        Address("ipc:///tmp/a#b", "00ff", "host/1"),
        Address("ipc:///tmp/a#b#" + "0" * 80, "00ff", "host/1"),
        Address("tcp://[fd00::1]:5", "00ff", "host/1", "ab" * 40),
    ],
)
def test_addresses_are_read_back(address):
    assert Address.parse(address.text()) == address


@pytest.mark.parametrize("text", ["", "a#b", "a#xyz#host", "a##host", "#" * 9])
def test_what_is_no_address(text):
    with pytest.raises(InvalidValue, match="is no address of a card; give all cards one superpod and one"):
        Address.parse(text)


def test_an_address_of_two():
    assert split(join("near", "far")) == ("near", "far")
    assert split("near") == ("near", "")


@pytest.fixture
def cards(tmp_path):
    """`cards(kind, n)`: cards of a kind of HOSTS."""
    with contextlib.ExitStack() as stack:

        def make(kind, n: int) -> list[Card]:
            make, book = HOSTS.get(kind, kind), dictionary()
            made = [Card(make(rank, tmp_path), book) for rank in range(n)]
            for card in made:
                stack.callback(card.close)
            return made

        yield make


@pytest.mark.parametrize("near", NEAR)
def test_each_peer_is_reached_by_the_link_for_it(cards, near):
    a, b, c = cards(f"{near}-two-hosts", 3)  # 0 and 2 are on one host
    for peer in (b, c):
        a.send(peer.rank, b"x" * 100)
        assert peer.recv(0, 100) == b"x" * 100
        peer.send(0, b"y")
        assert a.recv(peer.rank, 1) == b"y"
    link = a.mesh.link
    assert (link.near.peers(), link.far.peers(), link.peers()) == ([2], [1], [1, 2])
    assert link.bytes_far == 100


def test_a_card_that_listens_within_its_host_only(tmp_path, cards):
    (a,) = cards("zmq-two-hosts", 1)
    other = ZmqLink(1)
    address = Address.parse(other.address)._replace(host="elsewhere").text()
    with pytest.raises(InvalidValue, match=r"rank 1 is on another host .* set LOCAL_WORLD_SIZE"):
        a.mesh.link.connect(1, address)
    other.close(0)


@pytest.mark.parametrize("rank", [1, 2])
def test_deaths_are_told_of_either_kind(tmp_path, cards, rank):
    (a,) = cards("zmq-two-hosts", 1)
    other = HOSTS["zmq-two-hosts"](rank, tmp_path)
    other.connect(0, a.mesh.link.address)
    other.post(0, encode(Header(Kind.DATA, GROUP, 0, nbytes=1)), b"x")
    assert a.recv(rank, 1) == b"x"
    other.close(0)
    with within(5), pytest.raises(PeerLost, match=f"rank {rank} died"):
        a.recv(rank, 1)


@pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
def test_either_family_and_a_range_of_ports(tmp_path, cards, address):
    with socket.create_server(("127.0.0.1", 0)) as free:
        low = free.getsockname()[1]
    hosts = BetweenHosts(True, SECRET, address, ports=f"{low}-{low + 200}")

    def make(rank, directory):
        near = NEAR["zmq"](rank, directory)
        near._host, near._address = f"host {rank}", Address.parse(near.address)._replace(host=f"host {rank}").text()
        return for_several_hosts(near, hosts)

    try:
        socket.create_server((address, 0), family=socket.AF_INET6 if ":" in address else socket.AF_INET).close()
    except OSError as error:
        pytest.skip(f"this host has no {address}: {error}")
    a, b = cards(make, 2)
    a.send(1, b"abc")
    assert b.recv(0, 3) == b"abc"
    for card in (a, b):
        port = int(Address.parse(card.mesh.link.far.address).endpoint.rpartition(":")[2])
        assert low <= port <= low + 200


def test_a_range_that_is_taken(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        near = NEAR["zmq"](0, tmp_path)
        with pytest.raises(InvalidValue, match=rf"rank 0 cannot listen at tcp://127.*:{port}-{port}: Addr"):
            for_several_hosts(near, BetweenHosts(True, SECRET, "127.0.0.1", ports=f"{port}-{port}"))
    assert list(tmp_path.iterdir()) == []


def test_a_link_leaves_nothing(tmp_path):
    before = len(os.listdir("/proc/self/fd"))
    for near in NEAR:
        link = near_and_far(near, str, lambda: Keys(SECRET))(0, tmp_path)
        link.close(0)
        link.close(0)
    assert list(tmp_path.iterdir()) == []
    end = SOON
    while len(os.listdir("/proc/self/fd")) > before and end > 0:
        end -= 0.01
        os.sched_yield()
    assert len(os.listdir("/proc/self/fd")) == before
