from __future__ import annotations

import pytest

from superpod.interconnect.errors import InvalidValue
from superpod.interconnect.secret import JobSecret
from superpod.interconnect.zmq_keys import KeyPair

SECRET = JobSecret(bytes(range(32)))


def test_it_is_read_back_from_its_text():
    made = JobSecret.new()
    assert JobSecret.from_text(made.text) == made
    assert len(made.text) == 64
    assert made != JobSecret.new()
    assert hash(made) == hash(JobSecret.from_text(made.text))


@pytest.mark.parametrize("text", ["", "hunter2", "0" * 63, "0" * 66, "g" * 64, "00 " * 21 + "0"])
def test_what_is_no_secret_is_refused_and_not_quoted(text):
    with pytest.raises(
        InvalidValue, match=rf"secret of {len(text)} characters must be 64 hexadecimal digits; .*openssl"
    ) as e:
        JobSecret.from_text(text)
    assert not text or text not in str(e.value)


def test_keys_of_different_purposes_say_nothing_of_one_another():
    keys = {SECRET.key(purpose) for purpose in ("a", "b", "ab", "")} | {JobSecret.new().key("a")}
    assert len(keys) == 5
    assert all(len(key) == 32 for key in keys)


def test_signatures():
    signature = SECRET.sign(b"data")
    assert SECRET.check(b"data", signature)
    assert not SECRET.check(b"date", signature)
    assert not SECRET.check(b"data", signature[:-1])
    assert not SECRET.check(b"data", bytes(32))
    assert not JobSecret.new().check(b"data", signature)


def test_pairs_follow_from_the_secret_and_the_role():
    assert KeyPair.of(SECRET, "cards").public == KeyPair.of(SECRET, "cards").public
    assert KeyPair.of(SECRET, "cards").public != KeyPair.of(SECRET, "store").public
    assert KeyPair.fresh().public != KeyPair.fresh().public


def test_nothing_shows_what_is_secret():
    pair = KeyPair.of(SECRET, "cards")
    for text in (repr(SECRET), str(SECRET), f"{SECRET}", repr([SECRET]), repr(pair)):
        assert SECRET.text not in text
        assert pair.private.decode() not in text
