"""The application's own tokens: client credentials (RFC 6749, section 4.4), in the same engine.

A client token is a grant with one slot and no refresh token. There is nothing to lose in it, so
two things differ: a process keeps a copy in its memory, and where the store is silent the process
gets a token for itself.
"""

import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from flask_atm.errors import LoginRequired, StoreError, TokenEndpointError
from flask_atm.grants.answers import Tokens
from flask_atm.grants.engine import Engine
from flask_atm.grants.record import Grant, Slot, Snapshot, Want, slot_key, token_request
from flask_atm.grants.refresh import Event, Exchange
from flask_atm.grants.seal import KeyRing
from flask_atm.oauth.token_endpoint import TokenEndpoint
from flask_atm.protocols import AtomicGrantStore, Clock
from flask_atm.tokens import AccessToken, TokenParameters

__all__ = ["ClientTokens"]

log = logging.getLogger("flask_atm.client_tokens")

_RECORD_LIFETIME: Final = 31 * 86400.0
#: The end of the year 9999: a generation outlives every token of an earlier one.
_NEVER: Final = 253402300799.0
_REMEMBERED: Final = 1024
_TRIES: Final = 5


@dataclass(frozen=True, kw_only=True, slots=True)
class _Local:
    """A token in the memory of this process.

    :param since: by the clock, when it was put here; a clock that shows less was set back.
    :param until: by the clock, when the store is asked again.
    """

    token: AccessToken
    since: float
    until: float


@dataclass(frozen=True, kw_only=True, slots=True)
class ClientTokens:
    """The tokens of one client; a token source. Thread-safe and fork-safe.

    :param issuer: the issuer, or the token endpoint of a server without one.
    :param auth_method: how the client authenticates: part of what shapes the token.
    :param engine: over the shared store.
    :param alone: over the memory of this process, for when the shared store is silent.
    :param leeway: seconds before the expiry from which on a token is renewed.
    :param local_lifetime: seconds that a token may be used without a look at the store.
    """

    name: str
    issuer: str
    client_id: str
    auth_method: str
    endpoint: TokenEndpoint
    engine: Engine
    alone: Engine
    ring: KeyRing
    clock: Clock
    settings: TokenParameters
    leeway: float
    local_lifetime: float
    _local: dict[str, _Local] = field(default_factory=dict)
    _last_complaint: list[float] = field(default_factory=lambda: [-60.0])

    def get(
        self,
        parameters: TokenParameters,
        *,
        rejected: str | None = None,
        deadline: float | None = None,
    ) -> AccessToken:
        """See :class:`~flask_atm.protocols.TokenSource`.

        :raises ServerUnavailable: the token endpoint is away, and no token is left.
        :raises TokenEndpointError: it refuses.
        """
        effective = self.settings.merge(parameters)
        name = slot_key(effective)
        local = self._local.get(name)
        wants_another = parameters.force_renewal or (
            local is not None and local.token.value == rejected
        )
        if local is not None and not wants_another and local.since <= self.clock() < local.until:
            return local.token
        call = _Call(
            owner=self,
            parameters=effective,
            rejected=rejected,
            deadline=deadline,
            slot_name=name,
        )
        try:
            snapshot, slot = call.get(self.engine)
        except StoreError as error:
            self._complain(error)
            snapshot, slot = call.get(self.alone)
        return self._remember(name, snapshot, slot, effective)

    def _remember(
        self, name: str, snapshot: Snapshot, slot: Slot, effective: TokenParameters
    ) -> AccessToken:
        now = self.clock()
        left = slot.expires_at - snapshot.now
        token = AccessToken(
            value=slot.token.reveal(),
            token_type=slot.token_type,
            expires_at=round(now + left, 3),
            scope=slot.scope if slot.scope is not None else " ".join(effective.scope or ()) or None,
            client_id=self.client_id,
            clock=self.clock,
        )
        fresh = left - min(self.leeway, 0.2 * slot.lifetime)
        if len(self._local) >= _REMEMBERED:
            self._local.clear()
        until = now + min(fresh, self.local_lifetime)
        self._local[name] = _Local(token=token, since=now, until=until)
        return token

    def _complain(self, error: StoreError) -> None:
        now = time.monotonic()
        if now - self._last_complaint[0] >= 60.0:
            self._last_complaint[0] = now
            log.error("client tokens are not shared with other processes now: %s", error)

    # -- forgetting

    @property
    def _generation_key(self) -> str:
        return self.ring.digest("generation", self.name, self.issuer, self.client_id)

    def forget(self) -> None:
        """Make every process get new tokens, of all scopes, within ``local_lifetime`` seconds.

        :raises StoreError: the store is silent; this process forgets all the same.
        """
        try:
            self._next_generation(self.alone.vault.store)
            self._next_generation(self.engine.vault.store)
        finally:
            self._local.clear()

    def _next_generation(self, store: AtomicGrantStore) -> None:
        key = self._generation_key
        while True:
            stored = store.read(key)
            if stored is None:
                # Version 1 is what everybody assumes while there is no record.
                store.create(key, b"", ends_at=_NEVER)
                continue
            outcome = store.update(key, b"", expected_version=stored.control.version)
            if outcome == "ok":
                return

    def generation(self, engine: Engine) -> int:
        """Give the number that :meth:`forget` raises."""
        stored = engine.vault.store.read(self._generation_key)
        return 1 if stored is None else stored.control.version


@dataclass(frozen=True, kw_only=True, slots=True)
class _Call:
    """One caller's way to a token, over the shared store or alone."""

    owner: ClientTokens
    parameters: TokenParameters
    rejected: str | None = field(repr=False)
    deadline: float | None
    slot_name: str

    def get(self, engine: Engine) -> tuple[Snapshot, Slot]:
        owner = self.owner
        key = owner.ring.digest(
            "client_credentials",
            owner.name,
            owner.issuer,
            owner.client_id,
            owner.auth_method,
            self.slot_name,
            str(owner.generation(engine)),
        )
        want = Want(
            slot=self.slot_name,
            leeway=owner.leeway,
            rejected=self.rejected,
            by_refresh_token=False,
        )
        renewal = _ClientCredentials(owner=owner, parameters=self.parameters)
        try:
            return engine.get(
                self.opened(engine, key),
                want,
                renewal,
                force=self.parameters.force_renewal,
                deadline=self.deadline,
            )
        except LoginRequired as error:
            reason = error.reason
        # No user can mend this: it is between this application and the server.
        raise TokenEndpointError(reason, provider=owner.name)

    def opened(self, engine: Engine, key: str) -> Snapshot:
        """Give the record, made if need be."""
        for _ in range(_TRIES):
            snapshot = engine.vault.read(key)
            if snapshot is not None:
                return snapshot
            grant = Grant(
                provider=engine.name, issuer=self.owner.issuer, client_id=self.owner.client_id
            )
            sealed = engine.vault.seal(key, grant, version=1)
            ends_at = self.owner.clock() + _RECORD_LIFETIME
            made = engine.vault.store.create(key, sealed, ends_at=ends_at)
            if not made and engine.vault.read(key) is None:
                # It is there, and does not open any more.
                engine.vault.delete(key, keep=None, index=())
        raise StoreError(
            "the store does not keep a new record: its clock is far from that of this application"
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class _ClientCredentials:
    """A renewal by client credentials (RFC 6749, section 4.4)."""

    owner: ClientTokens
    parameters: TokenParameters
    is_login: bool = True

    def prepare(self, grant: Grant) -> Exchange:
        parameters = self.parameters
        form = token_request(parameters, grant_type="client_credentials")
        return self.owner.endpoint.prepare(form, client_assertion=parameters.client_assertion)

    def verify(self, grant: Grant, tokens: Tokens) -> Mapping[str, Any] | None:
        return None

    def revoke(self, grant: Grant, tokens: Tokens) -> None:
        """A client token that nobody uses expires by itself."""

    def notify(self, event: Event) -> None:
        """The signals are about users."""
