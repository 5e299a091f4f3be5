"""The values that applications hold: tokens, who is signed in, what is asked for. All frozen.

Secrets never show in ``repr``, ``str``, formatting, ``asdict``, pickles or logs. Every value here
may be shared between threads.
"""

import re
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from hashlib import sha256
from typing import Any, Final, Never, Self

__all__ = [
    "AS_CONFIGURED",
    "AccessToken",
    "FrozenDict",
    "Login",
    "Secret",
    "TokenParameters",
    "UserToken",
    "fingerprint",
    "parse_scope",
]

# RFC 6749, section 3.3: scope-token
_SCOPE_TOKEN: Final = re.compile(r"[\x21\x23-\x5b\x5d-\x7e]+")


class FrozenDict(dict[str, Any]):
    """A dict that refuses changes; still a ``dict`` to JSON, Jinja and ``asdict``."""

    __slots__ = ()

    def _refuse(self, *args: object, **kwargs: object) -> Never:
        raise TypeError("these values are frozen: make a dict(…) of them to change a copy")

    @classmethod
    def of(cls, mapping: Mapping[str, Any]) -> "FrozenDict":
        """Give the mapping itself if it is frozen, else a frozen copy."""
        return mapping if isinstance(mapping, FrozenDict) else cls(mapping)

    __setitem__ = __delitem__ = __ior__ = clear = pop = popitem = setdefault = update = _refuse


class Secret:
    """A text that shows itself only to :meth:`reveal`.

    :param text: the secret.
    """

    __slots__ = ("__text",)

    def __init__(self, text: str) -> None:
        self.__text = text

    def reveal(self) -> str:
        """Return the secret itself."""
        return self.__text

    def __repr__(self) -> str:
        return "<Secret>"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and self.__text == other.__text

    def __hash__(self) -> int:
        return hash(self.__text)

    def __copy__(self) -> Self:
        return self

    def __deepcopy__(self, memo: object) -> Self:
        return self

    def __reduce__(self) -> Never:
        raise TypeError("secrets are never pickled")


class _Authorization(str):
    """The value of an Authorization header: a plain ``str`` to HTTP, masked to debuggers."""

    __slots__ = ()

    def __repr__(self) -> str:
        return f"'{self.partition(' ')[0]} ***'"


def fingerprint(grant_id: str) -> str:
    """Give the eight characters by which logs name a grant: of no use to get at it."""
    return sha256(grant_id.encode()).hexdigest()[:8]


def parse_scope(scope: str | Iterable[str]) -> tuple[str, ...]:
    """Split a scope and check it by the grammar of RFC 6749, section 3.3.

    :param scope: scope tokens separated by spaces, or a list of them.
    :raises ValueError: for a character that no scope may have.
    :raises TypeError: for anything but texts.
    """
    words = scope.split(" ") if isinstance(scope, str) else list(scope)
    for word in words:
        if not isinstance(word, str):
            raise TypeError(f"a scope is a text or a list of texts, not {type(word).__name__}")
        if word and not _SCOPE_TOKEN.fullmatch(word):
            raise ValueError(
                f"{word!r} is no scope: printable ASCII without space, quote and backslash only"
                " (RFC 6749, section 3.3)"
            )
    return tuple(dict.fromkeys(word for word in words if word))


@dataclass(frozen=True, kw_only=True, slots=True, init=False, repr=False)
class AccessToken:
    """An access token and what is known about it.

    :param value: the token as the server issued it.
    :param token_type: ``Bearer`` or ``DPoP`` in that spelling, anything else verbatim.
    :param expires_at: end of its life in epoch seconds.
    :param scope: what was granted, separated by spaces; ``None`` where nobody said.
    :param client_id: the registration that it was issued to.
    :param cnf: the key that it is bound to (RFC 7800), such as ``{"jkt": …}``.
    :param clock: gives the present as epoch seconds, for :attr:`expires_in`.
    """

    _value: Secret
    token_type: str
    expires_at: float
    scope: str | None
    client_id: str | None
    cnf: Mapping[str, str] | None
    _clock: Callable[[], float]

    def __init__(
        self,
        *,
        value: str,
        expires_at: float,
        token_type: str = "Bearer",
        scope: str | None = None,
        client_id: str | None = None,
        cnf: Mapping[str, str] | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        put = object.__setattr__
        put(self, "_value", Secret(value))
        put(self, "token_type", token_type)
        put(self, "expires_at", expires_at)
        put(self, "scope", scope)
        put(self, "client_id", client_id)
        put(self, "cnf", cnf)
        put(self, "_clock", clock)

    def __bool__(self) -> bool:
        """A token is always true; ``current_user_token`` without a sign-in is not."""
        return True

    @property
    def value(self) -> str:
        """The token itself: a secret. Prefer the sessions, which send it to the right place."""
        return self._value.reveal()

    @property
    def authorization(self) -> str:
        """The value of the Authorization header; its ``repr`` is masked."""
        return _Authorization(f"{self.token_type} {self._value.reveal()}")

    @property
    def expires_in(self) -> float:
        """Seconds left now; negative once it has expired."""
        return self.expires_at - self._clock()

    def __repr__(self) -> str:
        return (
            f"<{type(self).__name__} {self.token_type} scope={self.scope!r}"
            f" expires_at={self.expires_at:.0f}>"
        )

    def __reduce__(self) -> Never:
        raise TypeError("tokens are never pickled: pass the grant id and use atm.use_grant(…)")


@dataclass(frozen=True, kw_only=True, slots=True, init=False, repr=False)
class UserToken(AccessToken):
    """An access token of a user, with what the sign-in said of that user.

    :param id_token: the last ID token, as it came, or ``None``.
    :param claims: the claims of the sign-in.
    :param provider: the name of the provider.
    :param grant_id: the handle for :meth:`ATM.use_grant`: whoever has it acts as the user.
    :param refreshable: whether there is a refresh token behind it.
    """

    _id_token: Secret | None
    claims: Mapping[str, Any]
    provider: str
    _grant_id: Secret
    refreshable: bool

    def __init__(
        self,
        *,
        value: str,
        expires_at: float,
        provider: str,
        grant_id: str,
        token_type: str = "Bearer",
        scope: str | None = None,
        client_id: str | None = None,
        cnf: Mapping[str, str] | None = None,
        id_token: str | None = None,
        claims: Mapping[str, Any] | None = None,
        refreshable: bool = False,
        clock: Callable[[], float] = time.time,
    ) -> None:
        # Slotted dataclasses are made twice, so super() without arguments would miss.
        AccessToken.__init__(
            self,
            value=value,
            expires_at=expires_at,
            token_type=token_type,
            scope=scope,
            client_id=client_id,
            cnf=cnf,
            clock=clock,
        )
        put = object.__setattr__
        put(self, "_id_token", Secret(id_token) if id_token is not None else None)
        put(self, "claims", FrozenDict.of(claims or {}))
        put(self, "provider", provider)
        put(self, "_grant_id", Secret(grant_id))
        put(self, "refreshable", refreshable)

    @property
    def id_token(self) -> str | None:
        """The last ID token as it came: a secret."""
        return self._id_token.reveal() if self._id_token else None

    @property
    def grant_id(self) -> str:
        """The handle of the grant: a secret, to be passed to jobs only."""
        return self._grant_id.reveal()


@dataclass(frozen=True, kw_only=True, slots=True, init=False, repr=False)
class Login:
    """Who is signed in.

    :param provider: the name of the provider.
    :param grant_id: the handle for :meth:`ATM.use_grant`: whoever has it acts as the user.
    :param subject: the ``sub`` of the ID token; empty for an account without one.
    :param claims: the claims of the ID token, completed by userinfo where that is configured.
    :param signed_in_at: epoch seconds.
    :param ends_at: epoch seconds: the latest end of this sign-in.
    """

    provider: str
    _grant_id: Secret
    subject: str
    claims: Mapping[str, Any]
    signed_in_at: float
    ends_at: float

    def __init__(
        self,
        *,
        provider: str,
        grant_id: str,
        subject: str,
        claims: Mapping[str, Any],
        signed_in_at: float,
        ends_at: float,
    ) -> None:
        put = object.__setattr__
        put(self, "provider", provider)
        put(self, "_grant_id", Secret(grant_id))
        put(self, "subject", subject)
        put(self, "claims", FrozenDict.of(claims or {}))
        put(self, "signed_in_at", signed_in_at)
        put(self, "ends_at", ends_at)

    @property
    def grant_id(self) -> str:
        """The handle of the grant: a secret, to be passed to jobs only."""
        return self._grant_id.reveal()

    def __bool__(self) -> bool:
        """A login is always true; ``current_login`` of nobody is not."""
        return True

    def __repr__(self) -> str:
        return f"<Login provider={self.provider!r} grant={fingerprint(self.grant_id)}>"

    def __reduce__(self) -> Never:
        raise TypeError("a login is never pickled: pass its grant_id and use atm.use_grant(…)")


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenParameters:
    """What one caller asks of a token. ``None`` and empty mean "as configured".

    :param scope: a text with spaces, or a list of scopes.
    :param resource: a URI or a list of them (RFC 8707).
    :param audience: the ``audience`` parameter of Auth0 and others.
    :param client_assertion: a JWT that authenticates this application (RFC 7523).
    :param extra: further parameters of the token request, by name.
    :param force_renewal: get a new token even if the present one is good. Not sent.
    :param proof_claims: further claims of a DPoP proof. Not sent.
    :param context: anything for your customizer. Not sent, not part of a cache key.
    :raises ValueError: for a scope outside the grammar of RFC 6749.
    :raises TypeError: for values of another type.
    """

    scope: tuple[str, ...] | None = None
    resource: tuple[str, ...] | None = None
    audience: str | None = None
    client_assertion: Secret | None = None
    extra: Mapping[str, str] = field(default_factory=FrozenDict)
    force_renewal: bool = False
    proof_claims: Mapping[str, Any] = field(default_factory=FrozenDict)
    context: Any = None

    @classmethod
    def of(
        cls,
        *,
        scope: str | Iterable[str] | None = None,
        resource: str | Iterable[str] | None = None,
        audience: str | None = None,
        client_assertion: str | Secret | None = None,
        extra: Mapping[str, str] | None = None,
        force_renewal: bool = False,
        proof_claims: Mapping[str, Any] | None = None,
        context: Any = None,
    ) -> Self:
        """Make parameters from what people write: lists or texts, checked."""
        if resource is not None:
            resource = (resource,) if isinstance(resource, str) else tuple(resource)
            if not all(isinstance(uri, str) for uri in resource):
                raise TypeError("resource is a URI or a list of URIs")
        if isinstance(client_assertion, str):
            client_assertion = Secret(client_assertion)
        for name, value in (extra or {}).items():
            if not all(isinstance(text, str) for text in (name, value)):
                raise TypeError(f"extra[{name!r}] has to be a text")
        if audience is not None and not isinstance(audience, str):
            raise TypeError("audience is a text")
        return cls(
            scope=None if scope is None else parse_scope(scope),
            resource=resource,
            audience=audience,
            client_assertion=client_assertion,
            extra=FrozenDict(extra or {}),
            force_renewal=bool(force_renewal),
            proof_claims=FrozenDict(proof_claims or {}),
            context=context,
        )

    def replace(self, **changes: Any) -> Self:
        """Give these parameters with changes: the same names as :meth:`of` takes."""
        return self.merge(type(self).of(**changes))

    def merge(self, last: "TokenParameters") -> Self:
        """Give both together; what ``last`` sets wins, ``extra`` and claims merge by name."""
        if last is AS_CONFIGURED or last == AS_CONFIGURED:
            return self
        return replace(
            self,
            scope=self.scope if last.scope is None else last.scope,
            resource=self.resource if last.resource is None else last.resource,
            audience=self.audience if last.audience is None else last.audience,
            client_assertion=last.client_assertion or self.client_assertion,
            extra=FrozenDict({**self.extra, **last.extra}),
            force_renewal=self.force_renewal or last.force_renewal,
            proof_claims=FrozenDict({**self.proof_claims, **last.proof_claims}),
            context=self.context if last.context is None else last.context,
        )


#: What a caller asks for who asks for nothing in particular.
AS_CONFIGURED: Final = TokenParameters()
