"""The engine of this library as a child process has it."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Final

from flask_atm.grants.parameters import EngineParameters
from flask_atm.grants.stores import SQLiteStore
from flask_atm.grants.user_tokens import UserTokens
from flask_atm.grants.vault import record_key
from flask_atm.protocols import AtomicGrantStore
from flask_atm.state import State
from flask_atm.stores import SQLStore
from flask_atm.tokens import TokenParameters
from tests.faults.driver import Get
from tests.grants.redis_tools import clocked
from tests.grants.sql_tools import PATIENT, clocked_sql
from tests.grants.support import Setup, grant_from
from tests.grants.tools import FAST

__all__ = ["PARAMETERS", "FlaskATM"]

#: L = 1.6 s, T = 0.7 s, S = 0.4 s, D = 0.1 s.
PARAMETERS: Final[EngineParameters] = replace(FAST, min_ttl=0.3)


@dataclass(frozen=True, kw_only=True)
class FlaskATM:
    """Makes a state, and gets tokens from it.

    :param setup: how; its ``ahead`` makes the tokens of the test old.
    """

    setup: Setup

    def __call__(self, checkpoint: Callable[[str], None]) -> Get:
        state = self.setup.state(store=self.store(), checkpoint=checkpoint)
        tokens = self.tokens(state)
        # What is done once per process, and is no part of what is measured.
        state.provider().id_tokens.warm()
        state.store.read("warm")
        return lambda grant_id: tokens.get(grant_id, TokenParameters()).value

    def store(self) -> AtomicGrantStore:
        """Give the store, with the clock of this engine."""
        # As patient as it is by itself: the times of the engine are scaled, a busy disk is not.
        url, clock = self.setup.config["ATM_STORE"], self.setup.clock
        if url.startswith("sqlite:"):
            return SQLiteStore(url.removeprefix("sqlite:///"), clock=clock)
        make = clocked_sql if url.startswith("postgresql") else clocked
        return make(url, clock)

    def tokens(self, state: State) -> UserTokens:
        """Give what gets the tokens."""
        return state.provider().tokens

    def write(self, grant_id: str) -> None:
        """Do what another writer does: seal the record anew if the store lets it."""
        vault = self.tokens(self.setup.state(store=self.store())).vault
        snapshot = vault.read_stored(record_key(grant_id))
        assert snapshot is not None
        vault.replace(snapshot, replace(snapshot.grant, used_at=snapshot.now))

    def state(self) -> State:
        """Give a state for the test itself."""
        return self._patient(self.setup)

    def sign_in(self, response: dict[str, Any]) -> str:
        """Save a token response; it is as old as the clock of the children is ahead."""
        return grant_from(self._patient(replace(self.setup, ahead=0.0)), response)

    @staticmethod
    def _patient(setup: Setup) -> State:
        """Give a state whose store may take its time: it is not what is measured."""
        url = setup.config["ATM_STORE"]
        is_sql = url.startswith("postgresql")
        return setup.state(store=SQLStore(url, **PATIENT) if is_sql else None)
