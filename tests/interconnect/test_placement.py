"""Which card each rank sits on."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from superpod.interconnect import topology_file
from superpod.interconnect.errors import InvalidValue
from superpod.interconnect.placement import in_words, place
from superpod.interconnect.topology import Level, Topology

ATLAS = topology_file.load("atlas-950")  # boards of 8, racks of 8 boards, pods of 4 × 4 racks, 8 pods
GRID = Topology("grid", levels=(Level("x", "full_mesh", 2, 1e9), Level("y", "full_mesh", 3, 1e9)))
THREE = topology_file.parse(
    'cards = 4\n[[links]]\nname = "c"\nbandwidth = "1GB/s"\npairs = [["0","s"],["1","s"],["2","s"],["3","s"]]', "three"
)


def test_packed_is_in_order():
    assert place("packed", 5, ATLAS).tolist() == [0, 1, 2, 3, 4]


def test_spread_fills_the_highest_level_first():
    assert place("spread", 6, GRID).tolist() == [0, 2, 4, 1, 3, 5]
    pods = place("spread", 16, ATLAS) // 1024
    assert pods.tolist() == [*range(8), *range(8)]


def test_spread_on_a_machine_of_links_is_even():
    assert place("spread", 2, THREE).tolist() == [0, 2]


@given(n=st.integers(1, 64), text=st.sampled_from(["packed", "spread"]))
def test_no_card_is_taken_twice(n, text):
    cards = place(text, n, ATLAS).tolist()
    assert len(set(cards)) == n
    assert min(cards) >= 0
    assert max(cards) < ATLAS.ncards


def test_a_list_and_a_file_with_one(tmp_path):
    assert place("0,8,16-18", 5, ATLAS).tolist() == [0, 8, 16, 17, 18]
    file = tmp_path / "cards"
    file.write_text("0, 8\n16-18\n")
    assert place(str(file), 5, ATLAS).tolist() == [0, 8, 16, 17, 18]
    assert in_words(str(file)) == "0,8,16-18"


@pytest.mark.parametrize(
    ("text", "n", "message"),
    [
        ("packed", 7, "7 cards are more than the 6 of grid; take fewer, or a topology with larger levels"),
        ("near", 2, "placement 'near' must be packed, spread, or the cards of ranks 0, 1, 2 ... such as 0,8,16-23"),
        ("0,-1", 2, "placement '0,-1' must be packed, spread"),
        ("0,,1", 2, "placement '0,,1' must be packed, spread"),
        ("0-2", 2, "placement lists 3 cards and the job has 2 ranks; list 2 of them"),
        ("0-99999999999999999999", 2, "placement lists 100000000000000000000 cards and the job has 2 ranks; list 2"),
        ("²", 1, "placement '²' must be packed, spread"),
        ("0,6", 2, "placement: card 6 does not exist; grid has 0 to 5"),
        ("4,4", 2, "placement: card 4 is given to ranks 0 and 1; a card takes one rank"),
    ],
)
def test_what_cannot_be_is_refused(text, n, message):
    with pytest.raises(InvalidValue) as refused:
        place(text, n, GRID)
    assert message in str(refused.value)
