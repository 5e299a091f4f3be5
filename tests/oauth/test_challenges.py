from time import perf_counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flask_atm.oauth.challenges import Challenge, parse_challenges, select


def parsed(*headers: str) -> list[tuple[str, dict[str, str]]]:
    return [(one.scheme, dict(one.params)) for one in parse_challenges(headers)]


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        ("Bearer", [("bearer", {})]),
        ("bearer ERROR=invalid_token", [("bearer", {"error": "invalid_token"})]),
        (
            'Bearer realm="a, b=c", error="x"',
            [("bearer", {"realm": "a, b=c", "error": "x"})],
        ),
        (r'Bearer realm="say \"hi\" \\ there"', [("bearer", {"realm": r'say "hi" \ there'})]),
        (
            'Bearer, DPoP algs="ES256 PS256", error="use_dpop_nonce"',
            [("bearer", {}), ("dpop", {"algs": "ES256 PS256", "error": "use_dpop_nonce"})],
        ),
        (
            'Basic realm="x", Bearer error="invalid_token" , scope="a b"',
            [("basic", {"realm": "x"}), ("bearer", {"error": "invalid_token", "scope": "a b"})],
        ),
        ('Bearer realm = "x" , error = y', [("bearer", {"realm": "x", "error": "y"})]),
        (',, Bearer ,, error="x",,', [("bearer", {"error": "x"})]),
        ("Bearer error=a, error=b", [("bearer", {"error": "a"})]),
        ('Bearer error=""', [("bearer", {"error": ""})]),
    ],
)
def test_challenges_are_read_as_rfc_9110_writes_them(
    header: str, expected: list[tuple[str, dict[str, str]]]
) -> None:
    assert parsed(header) == expected


def test_e8_two_headers_and_one_joined_header_are_the_same() -> None:
    first, second = 'Bearer realm="a, b"', 'DPoP error="use_dpop_nonce"'
    assert parsed(first, second) == parsed(f"{first}, {second}")
    assert [one.scheme for one in parse_challenges((first, second))] == ["bearer", "dpop"]


@pytest.mark.parametrize("token", ["YII=", "abc", "a-._~+/b=="])
def test_a_token68_is_not_taken_for_a_parameter(token: str) -> None:
    found = parse_challenges(f'Negotiate {token}, Basic realm="x"')
    assert found[0] == Challenge(scheme="negotiate", params={}, token68=token)
    assert found[1].params == {"realm": "x"}


@pytest.mark.parametrize(
    ("header", "error"),
    [
        ('Bearer realm="x" error="invalid_token"', "invalid_token"),  # no comma
        ('"Basic error=nope" Bearer error=invalid_token', "invalid_token"),
        ('Bearer error="invalid_token', "invalid_token"),  # no end
        ('Bearer error="invalid_token\\', "invalid_token"),
        ("Bearer resource_metadata=https://x/y?z=1, error=invalid_token", "invalid_token"),
        ("@@@ {} Bearer error=invalid_token", "invalid_token"),
        ("error=lost, Bearer error=invalid_token", "invalid_token"),
    ],
)
def test_what_fits_no_rule_does_not_hide_what_does(header: str, error: str) -> None:
    (bearer,) = select(parse_challenges(header), "bearer")
    assert bearer.params["error"] == error


@pytest.mark.parametrize(
    "header", ["", " ", ",", '"', "\\", "=", "é", "\x00", '"\\"', "(((", "=,="]
)
def test_garbage_is_no_challenge_and_no_error(header: str) -> None:
    assert parse_challenges(header) == ()


@given(st.text(alphabet='Bearerdpo ="\\,;/\t\n\x00é1-') | st.text())
def test_n1_no_header_raises_or_gives_anything_but_texts(header: str) -> None:
    for challenge in parse_challenges(header):
        assert challenge.scheme == challenge.scheme.lower()
        assert all(isinstance(value, str) for value in challenge.params.values())


@pytest.mark.parametrize(
    "part", ['"', 'a="', "a ", "a=", '\\"', 'a="\\', " ", ",", "Bearer a=", "a=b, ", '""', "a=\t"]
)
def test_n1_the_time_is_linear_to_the_length(part: str) -> None:
    long = part * (100_000 // len(part))
    begun = perf_counter()
    parse_challenges(long)
    assert perf_counter() - begun < 3  # quadratic: minutes
