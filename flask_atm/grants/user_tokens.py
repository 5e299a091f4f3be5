"""The tokens of users: a grant per sign-in, from its first token response to its revocation."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final, Protocol

from flask_atm.errors import InsufficientScope, LoginFailed, LoginRequired
from flask_atm.grants import indexes
from flask_atm.grants.answers import Tokens
from flask_atm.grants.copy_seal import has_id_tokens
from flask_atm.grants.engine import Engine
from flask_atm.grants.idle import Idle
from flask_atm.grants.logout_marks import LogoutMarks
from flask_atm.grants.outbox import Outbox
from flask_atm.grants.record import Grant, Slot, Snapshot, Want, slot_key, token_request
from flask_atm.grants.refresh import Event, Exchange
from flask_atm.grants.seal import KeyRing
from flask_atm.grants.vault import Vault, new_grant_id, record_key
from flask_atm.oauth.id_token import instant
from flask_atm.oauth.token_endpoint import TokenEndpoint
from flask_atm.protocols import Clock, Doomed
from flask_atm.tokens import AccessToken, Login, TokenParameters, UserToken

__all__ = ["EndedGrant", "IDTokens", "NewGrant", "UserTokenSource", "UserTokens"]

#: Servers leave these out of what they say they granted, or rename them; nobody is refused for it.
_UNCERTAIN: Final = frozenset({"openid", "profile", "email", "offline_access"})


class IDTokens(Protocol):
    """The checks of ID tokens, with the metadata and keys that they need."""

    def warm(self) -> None:
        """Get metadata and keys if they are not there; never fails for want of keys."""
        ...

    def check_refreshed(
        self, token: str, *, old_claims: Mapping[str, Any], access_token: str | None
    ) -> Mapping[str, Any] | None:
        """Check an ID token that came with a refresh; ``None``: it cannot be checked now."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class NewGrant:
    """What a sign-in gave.

    :param scope: what was asked for; the answer may say that less was granted.
    :param requested_at: epoch seconds: when the code was sent.
    :param grant_id: its id, if somebody had to know it before.
    """

    tokens: Tokens
    claims: Mapping[str, Any]
    scope: tuple[str, ...]
    requested_at: float
    grant_id: str | None = field(default=None, repr=False)


@dataclass(frozen=True, kw_only=True, slots=True)
class EndedGrant:
    """What is left of a grant that has just ended, for the logout at the provider."""

    key: str
    claims: Mapping[str, Any]
    subject: str
    id_token: str | None


@dataclass(frozen=True, kw_only=True, slots=True)
class UserTokens:
    """The grants of one provider. Thread-safe and fork-safe.

    :param issuer: the issuer, or the token endpoint of a provider without one.
    :param settings: the parameters of the configuration.
    :param resources: those that the sign-in asks for.
    :param keep_claims: whether claims stay that a new ID token does not have, because they came
        from the userinfo endpoint.
    :param leeway: seconds before the expiry from which on a token is renewed.
    :param lifetime: seconds until the absolute end of a grant.
    :param notify: told of every event, with the grant id; no lock and no lease is held then.
    :param outbox: where the refresh tokens of grants that have ended wait for their revocation.
    :param marks: what the provider has ended lately; ``None``: it ends none of these grants.
    :param idle: ends grants that nobody uses.
    :param revoke: whether the refresh tokens of grants that end by themselves are to be revoked.
    """

    name: str
    issuer: str
    client_id: str
    endpoint: TokenEndpoint
    id_tokens: IDTokens
    engine: Engine
    vault: Vault
    ring: KeyRing
    clock: Clock
    settings: TokenParameters
    resources: tuple[str, ...]
    keep_claims: bool
    leeway: float
    lifetime: float
    notify: Callable[[str, Event], None]
    outbox: Outbox
    marks: LogoutMarks | None = None
    idle: Idle | None = None
    revoke: bool = True

    # -- a sign-in

    def create(self, new: NewGrant) -> str:
        """Store what a sign-in gave.

        :returns: the grant id, a handle with 256 random bits: whoever has it acts as the user.
        :raises LoginFailed: the provider has ended its session meanwhile.
        :raises StoreError: the store did not take it; nobody is signed in.
        """
        grant_id = new.grant_id or new_grant_id(self.name)
        key = record_key(grant_id)
        grant = indexes.indexed(self.ring, self._grant(new))
        sealed = self.vault.seal(key, grant, version=1)
        created = self.vault.store.create(
            key, sealed, ends_at=grant.ends_at, index=self.index(grant)
        )
        if not created:
            # A store that has repeated the step, because an answer was lost, finds its own work.
            stored = self.vault.store.read(key)
            if stored is None or stored.sealed != sealed:
                raise AssertionError("a grant id of 256 random bits was there already")
        # Only now: a logout that does not find this grant has left its mark before.
        if self.marks is not None and self.marks.forbid(grant):
            self.end(grant_id)
            raise LoginFailed(
                "The provider has ended this session already.",
                error="logged_out",
                error_description="It signed the user out while the sign-in was under way.",
                provider=self.name,
            )
        if self.idle is not None:
            snapshot = self.vault.read_stored(key)  # the clock that counts is the store's
            if snapshot is not None:
                self.idle.used(snapshot, at_once=True)
        self.vault.copy_new(key)
        return grant_id

    def _grant(self, new: NewGrant) -> Grant:
        now = self.clock()
        tokens, claims = new.tokens, new.claims
        if tokens.refresh_token is None and not tokens.lifetime_stated:
            # Nothing could renew it, so a guess would only sign the user out: the API will tell.
            tokens = replace(tokens, lifetime=self.lifetime)
        session_id = claims.get("sid")
        grant = Grant(
            provider=self.name,
            issuer=self.issuer,
            client_id=self.client_id,
            subject=str(claims.get("sub", "")),
            session_id=session_id if isinstance(session_id, str) else None,
            id_token=tokens.id_token,
            claims=claims,
            scope=tokens.scope or " ".join(new.scope) or None,
            resources=self.resources,
            signed_in_at=now,
            ends_at=now + self.lifetime,
            issued_at=instant(claims.get("iat")) or 0.0,
        )
        grant = grant.renewed(
            slot_key(self.settings),
            tokens,
            claims=None,
            rejected=None,
            requested_at=new.requested_at,
            now=now,
        )
        return replace(grant, used_at=0.0)

    def index(self, grant: Grant) -> list[str]:
        """Give the index entries of a grant, by the first key of the ring."""
        return indexes.of_grant(self.ring, grant)

    def entries(self, kind: str, value: str) -> list[str]:
        """Give the index entries of a subject or session, by every key of the ring.

        :param kind: ``sub`` or ``sid``.
        """
        return indexes.entries(self.ring, self.issuer, self.client_id, kind, value)

    # -- use

    def open(self, grant_id: str) -> Snapshot | None:
        """Read a grant: one read of the store, never the network; ``None``: it has ended.

        :raises StoreError: the store is silent.
        """
        snapshot = self.vault.read(record_key(grant_id))
        if snapshot is None or snapshot.is_dead:
            return None
        return self._in_use(grant_id, snapshot)

    def _in_use(self, grant_id: str, snapshot: Snapshot) -> Snapshot | None:
        """Write down that a grant is used; ``None``: nobody has used it for too long, it ends."""
        if self.idle is None:
            return snapshot
        if not self.idle.is_over(snapshot):
            written = self.idle.used(snapshot)
            if written is not snapshot:
                self.vault.copy(written)
            return written
        # Of this version only: another one is that of somebody who uses it at this moment.
        if self._remove(self.doom(snapshot, revoke=self.revoke)):
            details = {"claims": snapshot.grant.claims}
            self.notify(grant_id, Event(name="user_logged_out", details=details))
        return None

    def login(self, grant_id: str, snapshot: Snapshot) -> Login:
        """Give who is signed in, from a grant that was read."""
        grant = snapshot.grant
        return Login(
            provider=self.name,
            grant_id=grant_id,
            subject=grant.subject,
            claims=grant.claims,
            signed_in_at=grant.signed_in_at,
            ends_at=grant.ends_at,
        )

    def get(
        self,
        grant_id: str,
        parameters: TokenParameters,
        *,
        rejected: str | None = None,
        deadline: float | None = None,
        first: Snapshot | None = None,
    ) -> UserToken:
        """Give a token that is valid now; see :class:`~flask_atm.protocols.TokenSource`.

        :param first: the grant, if it was read just now.
        :raises InsufficientScope: the user did not grant what the caller named.
        """
        effective = self.settings.merge(parameters)
        snapshot = first or self._opened(grant_id)
        if effective.resource and snapshot.grant.resources:
            self._check_resources(snapshot.grant, effective.resource)
        want = Want(slot=slot_key(effective), leeway=self.leeway, rejected=rejected)
        slot = None if parameters.force_renewal else self.engine.served(snapshot, want)
        if slot is None:
            renewal = _Refresh(
                owner=self,
                grant_id=grant_id,
                parameters=effective,
                is_login=want.slot == slot_key(self.settings),
            )
            snapshot, slot = self.engine.get(
                snapshot, want, renewal, force=parameters.force_renewal, deadline=deadline
            )
        if parameters.scope:
            self._check_scope(slot, parameters.scope)
        return self._user_token(grant_id, snapshot, slot, effective)

    def fresh_for(self, token: UserToken) -> float:
        """Give the seconds for which nobody has to look at this token again."""
        left = token.expires_in
        return max(min(1.0, left), left - self.leeway)

    def _opened(self, grant_id: str) -> Snapshot:
        snapshot = self.vault.read(record_key(grant_id))
        snapshot = snapshot and self._in_use(grant_id, snapshot)
        if snapshot is None:
            raise LoginRequired("This sign-in has ended.", provider=self.name, reason="ended")
        return snapshot

    def _check_resources(self, grant: Grant, wanted: tuple[str, ...]) -> None:
        missing = set(wanted) - set(grant.resources)
        if missing:
            raise InsufficientScope(
                f"The sign-in at {self.name!r} did not ask for the resource"
                f" {', '.join(sorted(missing))}: add it to ATM_RESOURCE and sign in again."
            )

    def _check_scope(self, slot: Slot, wanted: tuple[str, ...]) -> None:
        """Refuse only scopes that the caller named itself, and that the server left out."""
        if slot.scope is None:
            return
        granted = {_short(scope) for scope in slot.scope.split(" ")}
        missing = {scope for scope in wanted if _short(scope) not in granted} - _UNCERTAIN
        if missing:
            names = " ".join(sorted(missing))
            raise InsufficientScope(
                f"The user did not grant {names!r} at {self.name!r}: ask for it at the sign-in"
                " (ATM_SCOPE).",
                scope=names,
            )

    def _user_token(
        self, grant_id: str, snapshot: Snapshot, slot: Slot, effective: TokenParameters
    ) -> UserToken:
        grant = snapshot.grant
        asked = " ".join(effective.scope or ()) or grant.scope
        return UserToken(
            value=slot.token.reveal(),
            token_type=slot.token_type,
            # By the local clock, which may not be the store's.
            expires_at=round(slot.expires_at - snapshot.now + self.clock(), 3),
            scope=slot.scope if slot.scope is not None else asked,
            client_id=self.client_id,
            provider=self.name,
            grant_id=grant_id,
            id_token=grant.id_token.reveal() if grant.id_token else None,
            claims=grant.claims,
            refreshable=grant.refresh_token is not None,
            clock=self.clock,
        )

    # -- the end

    def end(
        self, grant_id: str, *, revoke: bool = True, revoke_after: float = 0.0
    ) -> EndedGrant | None:
        """End a grant at once; its refresh token goes to the outbox.

        :param revoke: whether its refresh token is to be revoked.
        :param revoke_after: seconds that the outbox waits.
        :returns: what is left of it; ``None``: it had ended already.
        :raises StoreError: the store is silent, and the grant still there.
        """
        key = record_key(grant_id)
        for last in (False, False, False, True):
            snapshot = self.vault.read(key)
            if snapshot is None:
                if self.vault.holds(key):
                    self.vault.delete(key, keep=None, index=())  # it does not open
                return None  # what its tombstone keeps is still to be revoked
            doomed = self.doom(snapshot, revoke=revoke, revoke_after=revoke_after, as_read=not last)
            if self._remove(doomed):
                return self.ended(snapshot)
        return None

    def _remove(self, doomed: Doomed) -> bool:
        return self.vault.delete(
            doomed.key,
            keep=doomed.keep,
            index=doomed.index,
            expected_version=doomed.expected_version,
        )

    def doom(
        self,
        snapshot: Snapshot,
        *,
        revoke: bool,
        revoke_after: float = 0.0,
        as_read: bool = True,
    ) -> Doomed:
        """Say what is to be removed, and what is to be kept of it until it is revoked.

        :param as_read: only if it is as it was read: the tokens of a refresh that is done
            meanwhile would stay unrevoked.
        """
        keep = self.outbox.sealed(snapshot, wait=revoke_after) if revoke else None
        return Doomed(
            key=snapshot.key,
            keep=keep,
            index=() if keep is None else self.outbox.entries[:1],
            expected_version=snapshot.control.version if as_read else None,
            ends_at=snapshot.control.ends_at,
        )

    def ended(self, snapshot: Snapshot) -> EndedGrant:
        """Give what is left of a grant that was removed."""
        grant = snapshot.grant
        return EndedGrant(
            key=snapshot.key,
            claims=grant.claims,
            subject=grant.subject,
            id_token=grant.id_token.reveal() if grant.id_token else None,
        )


def _short(scope: str) -> str:
    """Give the last part of a scope: some servers answer ``Mail.Read`` for the whole URI of it."""
    return scope.rpartition("/")[2] or scope


def _of_the_sign_in(claims: Mapping[str, Any]) -> dict[str, Any]:
    """Give the claims that say which sign-in this was (OIDC Core, section 12.2)."""
    return {name: claims[name] for name in ("auth_time", "nonce", "sid") if name in claims}


@dataclass(frozen=True, kw_only=True, slots=True)
class UserTokenSource:
    """A token source for one grant."""

    tokens: UserTokens
    grant_id: str = field(repr=False)

    def get(
        self,
        parameters: TokenParameters,
        *,
        rejected: str | None = None,
        deadline: float | None = None,
    ) -> AccessToken:
        """See :class:`~flask_atm.protocols.TokenSource`."""
        return self.tokens.get(self.grant_id, parameters, rejected=rejected, deadline=deadline)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Refresh:
    """A renewal by refresh token (RFC 6749, section 6)."""

    owner: UserTokens
    grant_id: str = field(repr=False)
    parameters: TokenParameters
    is_login: bool

    def prepare(self, grant: Grant) -> Exchange:
        if grant.refresh_token is None:
            raise LoginRequired(provider=self.owner.name, reason="expired")
        if has_id_tokens(grant):
            self.owner.id_tokens.warm()
        parameters = self.parameters
        form = token_request(
            parameters,
            grant_type="refresh_token",
            refresh_token=grant.refresh_token.reveal(),
        )
        return self.owner.endpoint.prepare(form, client_assertion=parameters.client_assertion)

    def verify(self, grant: Grant, tokens: Tokens) -> Mapping[str, Any] | None:
        if tokens.id_token is None or not has_id_tokens(grant):
            return None
        access_token = tokens.access_token
        claims = self.owner.id_tokens.check_refreshed(
            tokens.id_token.reveal(),
            old_claims=grant.claims,
            access_token=access_token.reveal() if access_token else None,
        )
        if claims is None:
            return None
        # What the next ID token is compared with stays, where this one leaves it out.
        kept = grant.claims if self.owner.keep_claims else _of_the_sign_in(grant.claims)
        return {**kept, **claims}

    def revoke(self, grant: Grant, tokens: Tokens) -> None:
        self.owner.outbox.revoke_unused(grant, tokens)

    def notify(self, event: Event) -> None:
        self.owner.notify(self.grant_id, event)
