"""What to do with the answer of an API: no I/O, so that every HTTP client decides alike.

The caller sends, asks :func:`decide`, does what comes back, and :meth:`Budget.spend` counts it:

========================= ====================================================================
:class:`Return`           give the answer to the caller as it is
:class:`NonceRetry`       send once more: the same token, a new proof with this nonce
:class:`Renew`            get another token than the refused one, send once more
:class:`Raise`            the token is good, but not for this: raise, never renew
========================= ====================================================================

RFC 6750 (section 3.1), RFC 9449 (sections 7.1, 9), RFC 9470.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final, Literal

from flask_atm.oauth.challenges import Challenge, parse_challenges, select

__all__ = ["Budget", "Decision", "NonceRetry", "Raise", "Renew", "Return", "decide"]

_REFUSALS: Final = (401, 403)


@dataclass(frozen=True, kw_only=True, slots=True)
class Return:
    """Give the answer to the caller."""


@dataclass(frozen=True, kw_only=True, slots=True)
class NonceRetry:
    """Send again with the same token and a proof that has this nonce.

    :param nonce: the one of this very answer.
    """

    nonce: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Renew:
    """Get another token and send again."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Raise:
    """Another token of the same kind would be refused too.

    :param kind: the error code of the API.
    :param scope: the scopes that the API wants, separated by spaces.
    :param acr_values: the authentication context classes that it wants, best first.
    :param max_age: seconds that may have passed since the user authenticated.
    """

    kind: Literal["insufficient_scope", "insufficient_user_authentication"]
    scope: str | None = None
    acr_values: tuple[str, ...] = ()
    max_age: int | None = None


Decision = Return | NonceRetry | Renew | Raise

_RETURN: Final = Return()
_RENEW: Final = Renew()


@dataclass(frozen=True, kw_only=True, slots=True)
class Budget:
    """How often one call may still be sent, and for what.

    :param sendings: after the first one.
    :param renewals: of the token.
    :param nonces: that the API may demand.
    """

    sendings: int = 2
    renewals: int = 1
    nonces: int = 1

    def spend(self, decision: Decision) -> "Budget":
        """Give what is left after one more sending for this reason."""
        return replace(
            self,
            sendings=self.sendings - isinstance(decision, (Renew, NonceRetry)),
            renewals=self.renewals - isinstance(decision, Renew),
            nonces=self.nonces - isinstance(decision, NonceRetry),
        )


def decide(
    status: int,
    headers: Sequence[str],
    budget: Budget,
    *,
    proof_sent: bool = False,
    nonce: str | None = None,
) -> Decision:
    """Say what the answer of an API asks for.

    :param status: the HTTP status.
    :param headers: the values of all ``WWW-Authenticate`` headers.
    :param budget: what this call may still do.
    :param proof_sent: whether the request carried a DPoP proof.
    :param nonce: the ``DPoP-Nonce`` header of the answer.
    """
    if status not in _REFUSALS:
        return _RETURN
    challenges = parse_challenges(headers)
    if proof_sent and _wants_nonce(challenges):
        # Whatever else it says: only with the right nonce does it look at the token at all.
        if nonce and budget.nonces > 0 and budget.sendings > 0:
            return NonceRetry(nonce=nonce)
        return _RETURN
    ours = _for_our_token(challenges, proof_sent)
    if refused := _raised(ours):
        return refused
    renewable = not challenges or any(_blames_token(challenge) for challenge in ours)
    if status == 401 and renewable and budget.renewals > 0 and budget.sendings > 0:
        return _RENEW
    return _RETURN


def _wants_nonce(challenges: Sequence[Challenge]) -> bool:
    return any(c.params.get("error") == "use_dpop_nonce" for c in select(challenges, "dpop"))


def _for_our_token(challenges: Sequence[Challenge], proof_sent: bool) -> tuple[Challenge, ...]:
    """Give what speaks of the kind of token that was sent.

    An API that takes both kinds sends both challenges, and says of the other one only that it
    would do too.
    """
    kinds = ("dpop", "bearer") if proof_sent else ("bearer", "dpop")
    return select(challenges, kinds[0]) or select(challenges, kinds[1])


def _blames_token(challenge: Challenge) -> bool:
    return (challenge.params.get("error") or "invalid_token") == "invalid_token"


def _raised(challenges: Sequence[Challenge]) -> Raise | None:
    for challenge in challenges:
        params = challenge.params
        if params.get("error") == "insufficient_user_authentication":
            return Raise(
                kind="insufficient_user_authentication",
                acr_values=tuple(params.get("acr_values", "").split()),
                max_age=_seconds(params.get("max_age", "")),
            )
        if params.get("error") == "insufficient_scope":
            return Raise(kind="insufficient_scope", scope=params.get("scope") or None)
    return None


def _seconds(text: str) -> int | None:
    # int() alone would take digits of other scripts, and time quadratic to their number.
    return int(text) if text.isascii() and text.isdigit() and len(text) < 12 else None
