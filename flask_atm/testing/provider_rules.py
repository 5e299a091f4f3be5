"""How the fake provider behaves."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

__all__ = ["Rules"]


@dataclass(kw_only=True, slots=True)
class Rules:
    """How the provider behaves; may be changed at any time.

    :param expires_in: seconds that an access token lives.
    :param lifetimes: the same by resource or audience; the shortest of a token's wins.
    :param refresh_expires_in: seconds that a refresh token lives; ``None``: for ever.
    :param refresh_tokens: whether there are any, for sign-ins with ``offline_access``.
    :param rotation: whether each refresh gives a new refresh token and spends the old one.
    :param scopes: the scopes there are, beside those of OpenID Connect; ``None``: any.
    :param resources: the resources there are (RFC 8707); ``None``: any.
    :param auto_approve: sign in whoever comes, without a page …
    :param user: … as this user, where there is no ``login_hint``.
    """

    expires_in: float = 300
    lifetimes: Mapping[str, float] = field(default_factory=dict)
    refresh_expires_in: float | None = None
    refresh_tokens: bool = True
    rotation: bool = True
    scopes: tuple[str, ...] | None = None
    resources: tuple[str, ...] | None = None
    auto_approve: bool = True
    user: str = ""

    def lifetime(self, audience: Iterable[str]) -> int:
        """Give the seconds that an access token for these resources lives."""
        return int(
            min(
                (self.lifetimes.get(uri, self.expires_in) for uri in audience),
                default=self.expires_in,
            )
        )
