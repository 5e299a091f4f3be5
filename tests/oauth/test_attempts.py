import pytest

from flask_atm.oauth.attempts import Budget, Decision, NonceRetry, Raise, Renew, Return, decide

BUDGET = Budget()


@pytest.mark.parametrize(
    "headers",
    [
        [],
        [""],
        ["Bearer"],
        ['bearer realm="x"'],
        ['Bearer error="invalid_token"'],
        ['Bearer error=""'],
        ["DPoP error=invalid_token"],
        ['Basic realm="x", Bearer error="invalid_token"'],
        ['Basic realm="x"', 'Bearer error="invalid_token"'],
        ['Bearer, DPoP error="use_dpop_nonce"'],
    ],
)
def test_e5_a_refused_token_is_renewed(headers: list[str]) -> None:
    assert decide(401, headers, BUDGET) == Renew()


@pytest.mark.parametrize(
    ("status", "headers"),
    [
        (200, ["Bearer error=invalid_token"]),
        (403, []),
        (403, ["Bearer error=invalid_token"]),
        (401, ['Basic realm="x"']),
        (401, ["Negotiate"]),
        (401, ["Bearer error=invalid_request"]),
        (401, ['DPoP error="invalid_dpop_proof"']),
        (401, ['DPoP error="use_dpop_nonce"']),
        (500, []),
    ],
)
def test_e9_every_other_answer_is_returned(status: int, headers: list[str]) -> None:
    assert decide(status, headers, BUDGET, nonce="n") == Return()


@pytest.mark.parametrize(
    "headers",
    [
        ['DPoP error="use_dpop_nonce"'],
        ['dpop ERROR="use_dpop_nonce", algs="ES256, PS256"'],
        ['Bearer error="invalid_token", DPoP error="use_dpop_nonce"'],
        ['Bearer realm="a, DPoP error=x"', "DPoP error=use_dpop_nonce"],
        ['DPoP error="use_dpop_nonce"', 'Bearer error="insufficient_scope"'],
    ],
)
def test_e8_a_nonce_challenge_is_answered_with_the_same_token(headers: list[str]) -> None:
    found = decide(401, headers, BUDGET, proof_sent=True, nonce="n-1")
    assert found == NonceRetry(nonce="n-1")


@pytest.mark.parametrize(
    ("budget", "nonce"),
    [(Budget(nonces=0), "n"), (Budget(sendings=0), "n"), (BUDGET, None), (BUDGET, "")],
)
def test_e8_a_nonce_challenge_never_renews_the_token(budget: Budget, nonce: str | None) -> None:
    headers = ['DPoP error="use_dpop_nonce", Bearer error="invalid_token"']
    assert decide(401, headers, budget, proof_sent=True, nonce=nonce) == Return()


@pytest.mark.parametrize(
    ("proof_sent", "expected"),
    [(False, Renew()), (True, Return())],
)
def test_e8_the_challenge_for_the_kind_of_token_that_was_sent_counts(
    proof_sent: bool, expected: Decision
) -> None:
    headers = ['DPoP error="invalid_request", Bearer error="invalid_token"']
    assert decide(401, headers, BUDGET, proof_sent=proof_sent) == expected


@pytest.mark.parametrize("status", [401, 403])
def test_e9_insufficient_scope_raises(status: int) -> None:
    found = decide(status, ['Bearer error="insufficient_scope", scope="a b"'], BUDGET)
    assert found == Raise(kind="insufficient_scope", scope="a b")


@pytest.mark.parametrize(
    ("max_age", "expected"),
    [
        ("300", 300),
        ("0", 0),
        ("-1", None),
        ("x", None),
        ("", None),
        ("9" * 5000, None),
        ("²", None),
    ],
)
def test_e9_insufficient_user_authentication_raises(max_age: str, expected: int | None) -> None:
    header = (
        'Bearer error="insufficient_user_authentication", acr_values="gold  silver",'
        f' max_age="{max_age}"'
    )
    assert decide(401, [header], BUDGET) == Raise(
        kind="insufficient_user_authentication",
        acr_values=("gold", "silver"),
        max_age=expected,
    )


def test_e7_a_call_has_one_renewal_one_nonce_and_three_sendings() -> None:
    budget = BUDGET.spend(Renew())
    assert decide(401, [], budget) == Return()
    nonce = ['DPoP error="use_dpop_nonce"']
    assert decide(401, nonce, budget, proof_sent=True, nonce="n") == NonceRetry(nonce="n")
    budget = budget.spend(NonceRetry(nonce="n"))
    assert budget == Budget(sendings=0, renewals=0, nonces=0)
    assert decide(401, nonce, budget, proof_sent=True, nonce="n") == Return()
    assert budget.spend(Return()) == budget
