"""What providers and clients are made of, and how: the one place that knows all the parts."""

import secrets
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Final

from flask import Flask

from flask_atm import signals
from flask_atm.config import Config
from flask_atm.config.keys import ProviderConfig, Registration
from flask_atm.errors import ProtocolError
from flask_atm.grants.breaker import Breaker, Refusals
from flask_atm.grants.client_tokens import ClientTokens
from flask_atm.grants.copies import Copies, PairName
from flask_atm.grants.copy_seal import for_cookie
from flask_atm.grants.engine import Engine
from flask_atm.grants.idle import Idle, last_use
from flask_atm.grants.logout_marks import LogoutMarks
from flask_atm.grants.outbox import Outbox
from flask_atm.grants.parameters import EngineParameters
from flask_atm.grants.record import Grant, slot_key
from flask_atm.grants.refresh import Event, Refresher
from flask_atm.grants.seal import KeyRing
from flask_atm.grants.single_flight import SingleFlight
from flask_atm.grants.stores import MemoryStore
from flask_atm.grants.stores.paired import leaving_tombstones
from flask_atm.grants.stores.session import SessionStore
from flask_atm.grants.user_tokens import UserTokens
from flask_atm.grants.vault import Vault
from flask_atm.oauth.back_channel import BackChannel
from flask_atm.oauth.client_auth import BY_METHOD
from flask_atm.oauth.id_token_checks import IDTokenChecks
from flask_atm.oauth.metadata import MetadataCache, ServerLocation
from flask_atm.oauth.token_endpoint import Endpoints, TokenEndpoint
from flask_atm.protocols import AtomicGrantStore, Clock, GrantStore
from flask_atm.tokens import TokenParameters

__all__ = ["Parts", "Provider", "issuer_of"]

_STORE_ID: Final = "store id"
#: The end of the year 9999: a record that does not end.
_NEVER: Final = 253402300799.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Provider:
    """One provider, ready for use.

    :param tokens: the grants of its users.
    :param client_tokens: the application's own tokens, got with this registration.
    """

    config: ProviderConfig
    location: ServerLocation
    endpoint: TokenEndpoint
    id_tokens: IDTokenChecks
    tokens: UserTokens
    client_tokens: ClientTokens

    @property
    def name(self) -> str:
        """Its name in the configuration."""
        return self.config.name


@dataclass(frozen=True, kw_only=True, slots=True)
class Parts:
    """What all providers and clients of an application share. Thread-safe and fork-safe.

    :param store: the atomic store, which decides about everything.
    :param plain: where copies of grants are beside it.
    :param checkpoint: called at the points where tests stop the refresh engine.
    """

    app: Flask = field(repr=False)
    config: Config
    clock: Clock
    ring: KeyRing
    store: AtomicGrantStore
    plain: GrantStore | None = None
    back_channel: BackChannel
    metadata: MetadataCache
    parameters: EngineParameters
    checkpoint: Callable[[str], None] = lambda point: None
    #: What this process remembers of the token endpoints, by issuer and client id.
    breakers: dict[tuple[str, str], Breaker] = field(default_factory=dict)
    _alone: MemoryStore = field(default_factory=MemoryStore)

    def store_id(self) -> str:
        """Give the random name that was made with the store: tells two stores apart."""
        while True:
            stored = self.store.read(_STORE_ID)
            if stored is not None:
                return stored.sealed.decode()
            self.store.create(_STORE_ID, secrets.token_urlsafe(6).encode(), ends_at=_NEVER)

    # -- providers and clients

    def make_provider(self, config: ProviderConfig) -> Provider:
        """Put a provider together."""
        location = _location(config)
        endpoint = self._endpoint(config, location)
        id_tokens = IDTokenChecks(
            metadata=self.metadata,
            location=location,
            client_id=config.client_id,
            algorithms=config.id_token.algorithms,
            clock_skew=config.id_token.clock_skew,
            clock=self.clock,
        )
        own = replace(
            config, scope=config.client_token_scope, resource=config.client_token_resource
        )
        return Provider(
            config=config,
            location=location,
            endpoint=endpoint,
            id_tokens=id_tokens,
            tokens=self._user_tokens(config, endpoint, id_tokens),
            client_tokens=self._client_tokens(f"provider:{config.name}", own, endpoint),
        )

    def _user_tokens(
        self, config: ProviderConfig, endpoint: TokenEndpoint, id_tokens: IDTokenChecks
    ) -> UserTokens:
        issuer = issuer_of(config)
        marks = self._marks(issuer, config.client_id) if config.sign_in else None
        # Of several resources a server picks none, or refuses: each caller names its own.
        settings = _settings(config if len(config.resource) == 1 else replace(config, resource=()))
        vault = self._vault(
            config.name,
            lambda grant: grant.issuer == issuer and grant.client_id == config.client_id,
            copied=slot_key(settings),
            marks=marks,
        )
        outbox = Outbox(
            name=config.name,
            issuer=issuer,
            client_id=config.client_id,
            endpoint=endpoint,
            vault=vault,
            ring=self.ring,
        )
        return UserTokens(
            name=config.name,
            issuer=issuer,
            client_id=config.client_id,
            endpoint=endpoint,
            id_tokens=id_tokens,
            engine=self._engine(config.name, config.client_id, issuer, vault),
            vault=vault,
            ring=self.ring,
            clock=self.clock,
            settings=settings,
            resources=config.resource,
            keep_claims=config.userinfo,
            leeway=self.config.user_token_leeway,
            lifetime=self.config.grant_lifetime,
            notify=lambda grant_id, event: self._notify(config, grant_id, event),
            outbox=outbox,
            marks=marks,
            idle=self._idle(vault),
            revoke=config.revoke_on_logout,
        )

    def _marks(self, issuer: str, client_id: str) -> LogoutMarks:
        return LogoutMarks(store=self.store, ring=self.ring, issuer=issuer, client_id=client_id)

    def _is_idle(self, grant: Grant) -> bool:
        """Tell whether nobody has used a grant for too long, by what is inside a copy of it."""
        timeout = self.config.grant_idle_timeout
        return timeout is not None and self.clock() - last_use(grant) >= timeout

    def _idle(self, vault: Vault) -> Idle | None:
        timeout = self.config.grant_idle_timeout
        return None if timeout is None else Idle(timeout=timeout, write=vault.replace)

    def make_client(self, config: Registration) -> ClientTokens:
        """Make what gets the tokens of a client; its configuration names the endpoint."""
        endpoint = self._endpoint(config, _location(config))
        return self._client_tokens(f"client:{config.name}", config, endpoint)

    def _client_tokens(
        self, label: str, config: Registration, endpoint: TokenEndpoint
    ) -> ClientTokens:
        issuer = issuer_of(config)
        shared = self._vault(label, lambda grant: True)
        alone = Vault(
            self._alone,
            self.ring,
            provider=label,
            parameters=self.parameters,
            is_ours=lambda grant: True,
        )
        return ClientTokens(
            name=label,
            issuer=issuer,
            client_id=config.client_id,
            auth_method=config.client_auth,
            endpoint=endpoint,
            engine=self._engine(label, config.client_id, issuer, shared),
            alone=self._engine(label, config.client_id, issuer, alone),
            ring=self.ring,
            clock=self.clock,
            settings=_settings(config).merge(TokenParameters.of(scope=config.scope or None)),
            leeway=self.config.client_token_leeway,
            local_lifetime=self.config.client_token_local_lifetime,
        )

    def _vault(
        self,
        name: str,
        is_ours: Callable[[Grant], bool],
        *,
        copied: str | None = None,
        marks: LogoutMarks | None = None,
    ) -> Vault:
        """Make a vault.

        :param copied: the slot of the sign-in, of grants that a plain store has copies of.
        :param marks: what the provider has ended lately.
        """
        store, copies = self.store, None
        if copied is not None and self.plain is not None:
            store, pair = leaving_tombstones(self.store), PairName(self.store_id)
            in_cookie = isinstance(self.plain, SessionStore)
            copies = Copies(
                self.plain.of(pair) if isinstance(self.plain, SessionStore) else self.plain,
                store,
                self.ring,
                provider=name,
                pair=pair,
                clock=self.clock,
                is_ours=lambda grant: is_ours(grant) and not self._is_idle(grant),
                trim=partial(for_cookie, slot=copied) if in_cookie else lambda grant: grant,
                forbid=lambda grant: marks is not None and marks.forbid(grant),
            )
        return Vault(
            store,
            self.ring,
            provider=name,
            parameters=self.parameters,
            is_ours=is_ours,
            copies=copies,
        )

    def _engine(self, name: str, client_id: str, issuer: str, vault: Vault) -> Engine:
        parameters = self.parameters
        breaker = self.breakers.setdefault((issuer, client_id), Breaker(name, parameters))
        refusals = Refusals(parameters.slot_pause)
        refresher = Refresher(
            vault,
            parameters=parameters,
            breaker=breaker,
            refusals=refusals,
            place=self._place,
            checkpoint=self.checkpoint,
        )
        return Engine(
            name=name,
            vault=vault,
            refresher=refresher,
            flights=SingleFlight(),
            breaker=breaker,
            refusals=refusals,
            parameters=parameters,
        )

    def _place(self, deadline: float) -> AbstractContextManager[bool]:
        return self.back_channel.place(deadline)

    def _endpoint(self, config: Registration, location: ServerLocation) -> TokenEndpoint:
        return TokenEndpoint(
            self.back_channel,
            name=config.name,
            client_id=config.client_id,
            auth=BY_METHOD[config.client_auth](config.client_id, config.client_secret),
            resolve=lambda: self._endpoints(location),
            timeout=self.config.token_timeout,
        )

    def _endpoints(self, location: ServerLocation) -> Endpoints:
        metadata = self.metadata.get(location)
        if metadata.token_endpoint is None:
            raise ProtocolError(
                f"the metadata of {location.name!r} name no token endpoint: set ATM_TOKEN_ENDPOINT"
            )
        return Endpoints(
            issuer=metadata.issuer,
            token_endpoint=metadata.token_endpoint,
            revocation_endpoint=metadata.revocation_endpoint,
        )

    def _notify(self, provider: ProviderConfig, grant_id: str, event: Event) -> None:
        if event.name == "user_logged_out" and not provider.sign_in:
            return  # a connected account signs nobody in
        signal = getattr(signals, event.name)
        signal.send(self.app, provider=provider.name, grant_id=grant_id, **event.details)


def _location(config: Registration) -> ServerLocation:
    return ServerLocation(
        name=config.name,
        issuer=config.issuer,
        metadata_url=config.metadata_url,
        endpoints=config.endpoints,
    )


def issuer_of(config: Registration) -> str:
    """Give what tells its server from others, also where it has no issuer."""
    return config.issuer or config.token_endpoint or ""


def _settings(config: Registration) -> TokenParameters:
    """Give the parameters that every token request of a registration carries."""
    return TokenParameters.of(
        resource=config.resource or None,
        audience=config.audience,
        extra=config.token_params,
    )
