"""The checks of ID tokens with the metadata and keys of their provider."""

import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from flask_atm.errors import ProtocolError, ServerUnavailable
from flask_atm.oauth.id_token import (
    IDTokenRejected,
    IDTokenRules,
    allowed_algorithms,
    validate,
    validate_refreshed,
)
from flask_atm.oauth.logout_token import LogoutToken, validate_logout
from flask_atm.oauth.metadata import MetadataCache, ServerLocation, ServerMetadata
from flask_atm.protocols import Clock

__all__ = ["IDTokenChecks"]

log = logging.getLogger("flask_atm.id_token")


@dataclass(frozen=True, kw_only=True, slots=True)
class IDTokenChecks:
    """Checks the ID tokens of one provider. Thread-safe.

    :param algorithms: the configured ones; empty: all asymmetric ones.
    :param clock_skew: seconds by which the clocks may differ.
    """

    metadata: MetadataCache
    location: ServerLocation
    client_id: str
    algorithms: tuple[str, ...] = ()
    clock_skew: float = 60
    clock: Clock = time.time
    _told: list[bool] = field(default_factory=list)
    _unknown_key: list[bool] = field(default_factory=list)

    def warm(self) -> None:
        """Get metadata and keys if they are not there; without them a check is just put off.

        After a token with an unknown key the keys are asked for once more, at most every 30 s.
        """
        try:
            metadata = self.metadata.get(self.location)
            self.metadata.warm(metadata)
            if self._unknown_key:
                self._unknown_key.clear()
                self.metadata.find_key(metadata, None, "")
        except (ServerUnavailable, ProtocolError) as error:
            log.debug("the keys of %r are not to be had now: %s", self.location.name, error)

    def check_sign_in(
        self,
        token: str,
        *,
        nonce: str,
        access_token: str | None = None,
        max_age: int | None = None,
        acr_values: tuple[str, ...] = (),
    ) -> Mapping[str, Any]:
        """Check the ID token of a sign-in and give its claims.

        :raises IDTokenRejected: it is proved bad.
        :raises KeysUnavailable: it cannot be checked now.
        :raises ServerUnavailable: the metadata cannot be had.
        """
        metadata = self.metadata.get(self.location)
        return validate(
            token,
            self._rules(metadata),
            keys=lambda kid, alg: self.metadata.candidates(metadata, kid, alg),
            now=self.clock(),
            nonce=nonce,
            access_token=access_token,
            max_age=max_age,
            acr_values=acr_values,
        )

    def check_logout(self, token: str) -> LogoutToken:
        """Check a logout token and give what it says: the same keys sign both kinds.

        :raises LogoutTokenRejected: it is proved bad.
        :raises KeysUnavailable: it cannot be checked now.
        :raises ServerUnavailable: the metadata cannot be had.
        """
        metadata = self.metadata.get(self.location)
        return validate_logout(
            token,
            self._rules(metadata),
            keys=lambda kid, alg: self.metadata.candidates(metadata, kid, alg),
            now=self.clock(),
        )

    def check_refreshed(
        self, token: str, *, old_claims: Mapping[str, Any], access_token: str | None
    ) -> Mapping[str, Any] | None:
        """Check the ID token of a refresh; ``None``: it cannot be checked now.

        :raises IDTokenRejected: it is proved bad, and with it the whole answer.
        """
        metadata = self.metadata.peek(self.location)
        reason = "the metadata of the provider are not to be had."
        try:
            if metadata is not None:
                return validate_refreshed(
                    token,
                    self._rules(metadata),
                    # A lease is held: whatever is not here is fetched for the next refresh.
                    keys=lambda kid, alg: self.metadata.candidates(metadata, kid, alg, fetch=False),
                    now=self.clock(),
                    old_claims=old_claims,
                    access_token=access_token,
                )
        except IDTokenRejected:
            raise
        except ProtocolError as error:
            reason = str(error)
        self._unknown_key.append(True)
        if not self._told:
            self._told.append(True)
            log.warning(
                "an ID token that came with a refresh is not used, the old one stays: %s", reason
            )
        return None

    def _rules(self, metadata: ServerMetadata) -> IDTokenRules:
        return IDTokenRules(
            issuer=self.location.issuer or "",
            client_id=self.client_id,
            algorithms=allowed_algorithms(
                self.algorithms, metadata.id_token_signing_alg_values_supported
            ),
            clock_skew=self.clock_skew,
        )
