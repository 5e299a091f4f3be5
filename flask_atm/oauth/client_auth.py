"""How this application authenticates at an authorization server (RFC 6749, section 2.3).

A new method is a class and a line in :data:`BY_METHOD`.
"""

from base64 import b64encode
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import ClassVar, Final, TypeAlias
from urllib.parse import quote_plus

from flask_atm.errors import ConfigurationError
from flask_atm.protocols import ClientAuth
from flask_atm.tokens import Secret

__all__ = [
    "BY_METHOD",
    "ClientSecretBasic",
    "ClientSecretPost",
    "NoClientAuth",
    "SecretSource",
]

#: A secret, or what gives it anew for every request.
SecretSource: TypeAlias = Secret | Callable[[], str]
_Form: TypeAlias = Mapping[str, str | Sequence[str]]
_Authenticated: TypeAlias = tuple[dict[str, str | Sequence[str]], dict[str, str]]

_JWT_BEARER: Final = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"
_RESERVED: Final = frozenset({"client_secret", "client_assertion", "client_assertion_type"})


def _copy(form: _Form) -> dict[str, str | Sequence[str]]:
    """Copy a form, and make sure that it brings no second authentication."""
    if foreign := sorted(_RESERVED & form.keys()):
        raise ConfigurationError(
            f"{', '.join(foreign)} cannot be a parameter of the request: set the client secret in"
            " the configuration, and pass an assertion of your own as client_assertion=…."
        )
    return dict(form)


def _assert(form: _Form, client_id: str, client_assertion: str) -> _Authenticated:
    """Authenticate by a JWT of the caller's own (RFC 7523, section 2.2)."""
    return {
        "client_id": client_id,
        **_copy(form),
        "client_assertion_type": _JWT_BEARER,
        "client_assertion": client_assertion,
    }, {}


def _reveal(secret: SecretSource, client_id: str) -> str:
    # Whatever the annotation says: this is what a callable of the application's returned.
    text: object = secret.reveal() if isinstance(secret, Secret) else secret()
    if isinstance(text, str) and text:
        return text
    kind = "an empty text" if isinstance(text, str) else type(text).__name__
    raise ConfigurationError(
        f"The secret of client {client_id!r} is {kind}: the secret, or the callable that gives"
        " it, has to give a text that is not empty."
    )


@dataclass(frozen=True, slots=True)
class _WithSecret:
    client_id: str
    secret: SecretSource | None = field(repr=False)
    method: ClassVar[str]

    def __post_init__(self) -> None:
        if self.secret is None:
            raise ConfigurationError(
                f"Client {self.client_id!r} has no secret: set its client_secret, or set"
                " client_auth to 'none' for a public client."
            )

    def _text(self) -> str:
        return _reveal(self.secret or Secret(""), self.client_id)


@dataclass(frozen=True, slots=True)
class ClientSecretBasic(_WithSecret):
    """Id and secret in the Authorization header, both form-encoded (RFC 6749, section 2.3.1).

    :param client_id: the client identifier.
    :param secret: the secret, or a callable that is asked for it at every request.
    """

    method: ClassVar[str] = "client_secret_basic"

    def authenticate(
        self,
        form: _Form,
        *,
        endpoint: str,
        issuer: str | None,
        client_assertion: str | None = None,
    ) -> _Authenticated:
        """Add the header; see :class:`~flask_atm.protocols.ClientAuth`."""
        if client_assertion is not None:
            return _assert(form, self.client_id, client_assertion)
        pair = f"{quote_plus(self.client_id)}:{quote_plus(self._text())}"
        return _copy(form), {"Authorization": f"Basic {b64encode(pair.encode()).decode()}"}


@dataclass(frozen=True, slots=True)
class ClientSecretPost(_WithSecret):
    """Id and secret in the form (RFC 6749, section 2.3.1).

    :param client_id: the client identifier.
    :param secret: the secret, or a callable that is asked for it at every request.
    """

    method: ClassVar[str] = "client_secret_post"

    def authenticate(
        self,
        form: _Form,
        *,
        endpoint: str,
        issuer: str | None,
        client_assertion: str | None = None,
    ) -> _Authenticated:
        """Add the parameters; see :class:`~flask_atm.protocols.ClientAuth`."""
        if client_assertion is not None:
            return _assert(form, self.client_id, client_assertion)
        return {**_copy(form), "client_id": self.client_id, "client_secret": self._text()}, {}


@dataclass(frozen=True, slots=True)
class NoClientAuth:
    """A public client: it says who it is and proves nothing.

    :param client_id: the client identifier.
    :param secret: there must be none.
    """

    client_id: str
    secret: SecretSource | None = field(default=None, repr=False)
    method: ClassVar[str] = "none"

    def __post_init__(self) -> None:
        if self.secret is not None:
            raise ConfigurationError(
                f"Client {self.client_id!r} has a secret that client_auth 'none' would never use:"
                " remove the secret, or set client_auth to 'client_secret_basic'."
            )

    def authenticate(
        self,
        form: _Form,
        *,
        endpoint: str,
        issuer: str | None,
        client_assertion: str | None = None,
    ) -> _Authenticated:
        """Add the client identifier; see :class:`~flask_atm.protocols.ClientAuth`."""
        if client_assertion is not None:
            return _assert(form, self.client_id, client_assertion)
        return {**_copy(form), "client_id": self.client_id}, {}


#: What makes each method from a client id and a secret.
BY_METHOD: Final[Mapping[str, Callable[[str, SecretSource | None], ClientAuth]]] = MappingProxyType(
    {one.method: one for one in (ClientSecretBasic, ClientSecretPost, NoClientAuth)}
)
