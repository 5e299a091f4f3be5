"""J2, J3, J6 and the key ring."""

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flask_atm.grants.seal import KeyRing, Unreadable

OLD, NEW, OTHER = b"o" * 32, b"n" * 32, b"x" * 32
PLACE: dict[str, str] = {"purpose": "grant", "record": "r", "bound": "p\x001"}


def test_what_is_sealed_opens_in_its_place() -> None:
    ring = KeyRing([NEW])
    assert ring.open(ring.seal(b"data", **PLACE), **PLACE) == b"data"
    assert ring.open(ring.seal(b"", **PLACE), **PLACE) == b""


@pytest.mark.parametrize(
    "place",
    [
        {**PLACE, "purpose": "outbox"},
        {**PLACE, "record": "of user B"},
        {**PLACE, "bound": "p\x002"},
        {**PLACE, "bound": "q\x001"},
        {"purpose": "grant", "record": "r"},
        # The parts cannot be shifted into each other.
        {"purpose": "grant\0r", "record": "", "bound": "p\x001"},
    ],
)
def test_j2_j3_nowhere_else(place: dict[str, str]) -> None:
    ring = KeyRing([NEW])
    sealed = ring.seal(b"data", **PLACE)
    with pytest.raises(Unreadable):
        ring.open(sealed, **place)


def test_j3_the_same_text_never_looks_the_same() -> None:
    ring = KeyRing([NEW])
    assert len({ring.seal(b"data", **PLACE) for _ in range(100)}) == 100


def test_every_bit_counts() -> None:
    ring = KeyRing([NEW])
    sealed = ring.seal(b"data", **PLACE)
    for position in range(len(sealed)):
        changed = bytearray(sealed)
        changed[position] ^= 1
        with pytest.raises(Unreadable):
            ring.open(bytes(changed), **PLACE)
        with pytest.raises(Unreadable):
            ring.open(sealed[:position], **PLACE)


@settings(deadline=None)
@given(st.binary(max_size=100))
def test_random_bytes_are_unreadable(data: bytes) -> None:
    with pytest.raises(Unreadable):
        KeyRing([NEW]).open(data, **PLACE)


def test_j4_a_ring_needs_a_key() -> None:
    with pytest.raises(ValueError, match="at least one"):
        KeyRing([])


def test_j5_the_first_key_seals_and_all_open() -> None:
    before = KeyRing([OLD]).seal(b"data", **PLACE)
    ring = KeyRing([NEW, OTHER, OLD])
    assert ring.open(before, **PLACE) == b"data"
    assert not ring.is_current(before)
    after = ring.seal(b"data", **PLACE)
    assert ring.is_current(after)
    assert KeyRing([NEW]).open(after, **PLACE) == b"data"
    for gone in ([OLD], [OTHER]):
        with pytest.raises(Unreadable, match="not in the ring"):
            KeyRing(gone).open(after, **PLACE)


@pytest.mark.parametrize(
    "value", [None, 5, "text", [], {"a": [1, None, "ü"]}, {"name": "half a pair \ud800"}]
)
def test_json_goes_in_and_comes_out(value: Any) -> None:
    ring = KeyRing([NEW])
    assert ring.open_json(ring.seal_json(value, **PLACE), **PLACE) == value


@pytest.mark.parametrize(
    "data", [b"", b"{", b"\xff", b"[" * 100_000, b"\x80\x04}.", json.dumps("x").encode()[:-1]]
)
def test_j6_what_is_no_json_is_unreadable(data: bytes) -> None:
    ring = KeyRing([NEW])
    with pytest.raises(Unreadable, match="no JSON"):
        ring.open_json(ring.seal(data, **PLACE), **PLACE)


def test_nothing_shows() -> None:
    ring = KeyRing([b"canary" * 6, OLD])
    assert repr(ring) == "<KeyRing of 2>"
    with pytest.raises(Unreadable) as raised:
        ring.open(ring.seal(b"canary", **PLACE)[:-1], **PLACE)
    assert "canary" not in str(raised.value)
    assert raised.value.__context__ is None


def test_digests_depend_on_every_part_and_every_key() -> None:
    ring = KeyRing([NEW, OLD])
    assert ring.digest("a", "b") == KeyRing([NEW]).digest("a", "b") == ring.digests("a", "b")[0]
    assert ring.digests("a", "b")[1] == KeyRing([OLD]).digest("a", "b")
    texts = [("a", "b"), ("ab",), ("a", "b", ""), ("b", "a")]
    assert len({ring.digest(*text) for text in texts}) == len(texts)
    assert len(ring.digest("a")) == 64
