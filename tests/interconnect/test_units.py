from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from superpod.interconnect.errors import InvalidValue
from superpod.interconnect.units import parse_rate, parse_seconds, parse_size, seconds_text, size_text


@pytest.mark.parametrize(
    ("text", "nbytes"),
    [
        ("0", 0),
        ("64", 64),
        ("64B", 64),
        ("4K", 4096),
        ("4k", 4096),
        ("4 KiB", 4096),
        ("1.5M", 3 << 19),
        ("2GB", 2 << 30),
    ],
)
def test_parse_size(text, nbytes):
    assert parse_size(text) == nbytes


@pytest.mark.parametrize("text", ["", "M", "-1", "1e3", "64X", "64MM", "six"])
def test_parse_size_refuses(text):
    with pytest.raises(InvalidValue, match=r"size '.*' must be a number with K, M, G or T behind it, such as 64M"):
        parse_size(text)


@pytest.mark.parametrize(
    ("parse", "most", "more", "message"),
    [
        (parse_size, "1048576T", "1048577T", r"size '.*' must be at most 1048576T; take fewer bytes"),
        (parse_size, "0", "9" * 400, r"size '.*' must be at most 1048576T"),
        (parse_seconds, "1e6", "1000001", r"duration '.*' must be at most 1000000 s, eleven days; take less"),
        (parse_seconds, "277h", "1e400h", r"duration '.*' must be at most 1000000 s"),
        (parse_rate, "1e6PB/s", "1e400GB/s", r"rate '.*' must be at most 1000000PB/s; take less"),
    ],
)
def test_there_is_a_most_of_each(parse, most, more, message):
    parse(most)
    with pytest.raises(InvalidValue, match=message):
        parse(more)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("10", 10),
        ("2.1us", 2.1e-6),
        ("2.1µs", 2.1e-6),
        ("7ns", 7e-9),
        ("300ms", 0.3),
        ("5m", 300),
        ("1h", 3600),
        ("1e-3", 1e-3),
    ],
)
def test_parse_seconds(text, seconds):
    assert parse_seconds(text) == pytest.approx(seconds, rel=1e-12)


@pytest.mark.parametrize("text", ["", "s", "-1s", "5 days", "inf", "nan"])
def test_parse_seconds_refuses(text):
    with pytest.raises(InvalidValue, match=r"duration '.*' must be a number with ns, us, ms, s, m or h behind it"):
        parse_seconds(text)


@pytest.mark.parametrize(
    ("nbytes", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (4096, "4 KiB"),
        (1536, "1.5 KiB"),
        ((1 << 20) - 1, "1.0 MiB"),
        (5 << 50, "5120 TiB"),
    ],
)
def test_size_text(nbytes, text):
    assert size_text(nbytes) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0 ns"), (2.1e-6, "2.1 µs"), (0.25, "250 ms"), (0.9999999, "1 s"), (59.96, "60 s"), (1800, "1800 s")],
)
def test_seconds_text(seconds, text):
    assert seconds_text(seconds) == text


@given(st.integers(0, 1 << 60))
def test_sizes_come_back(nbytes):
    assert parse_size(size_text(nbytes)) == pytest.approx(nbytes, rel=0.05)  # one decimal of at least 1


@given(st.floats(1e-9, 1e6))
def test_seconds_come_back(seconds):
    assert parse_seconds(seconds_text(seconds)) == pytest.approx(seconds, rel=0.006)  # three digits
