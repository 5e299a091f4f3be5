"""Checks of the key ring: that it can be guessed by nobody, and opens what the store has."""

from collections.abc import Iterator, Sequence

from flask_atm.config.ring import weakness
from flask_atm.doctor.finding import Finding, failed, ok, warning
from flask_atm.errors import StoreError
from flask_atm.grants.key_use import KeyUse, key_use
from flask_atm.grants.vault import Vault
from flask_atm.state import State

__all__ = ["check_ring"]


def check_ring(state: State, providers: Sequence[str]) -> Iterator[Finding]:
    """Look at the keys that seal what is stored.

    :param providers: the names of those whose records are to be opened.
    """
    secrets = state.config.encryption_keys
    if not secrets:
        yield ok("keys", "nothing outlives the process: it seals with a key of its own")
        return
    weak = [why for secret in secrets if (why := weakness(secret))]
    own = state.app.config.get("ATM_ENCRYPTION_KEYS") or state.app.config.get(
        "ATM_ENCRYPTION_KEYS_FILE"
    )
    source = "ATM_ENCRYPTION_KEYS" if own else "SECRET_KEY"
    if weak:
        make = "python -c 'import secrets; print(secrets.token_hex())'"
        cure = f"give {source} 32 random bytes: {make}"
        yield failed("keys", f"a key of the ring {weak[0]}", cure)
    elif own:
        yield ok("keys", f"{len(secrets)} of ATM_ENCRYPTION_KEYS")
    else:
        text = f"{len(secrets)}, made from SECRET_KEY and SECRET_KEY_FALLBACKS"
        yield ok("keys", f"{text}: who changes SECRET_KEY puts the old one into the fallbacks")
    try:
        yield _records(state, key_use(state.store, state.ring, *_vaults(state, providers)))
    except StoreError as error:
        yield failed("records", str(error), "see the message, and the line of the store above")


def _vaults(state: State, names: Sequence[str]) -> tuple[list[Vault], list[Vault]]:
    """Give the vaults of grants, and those of client tokens."""
    providers = [state.provider(name) for name in names]
    clients = [provider.client_tokens for provider in providers]
    clients += [state.client(name) for name in state.config.clients]
    return (
        [provider.tokens.vault for provider in providers],
        [client.engine.vault for client in clients],
    )


def _records(state: State, found: list[KeyUse]) -> Finding:
    lost = sum(one.unreadable for one in found if one.role == "missing")
    strange = sum(one.unreadable for one in found if one.role != "missing")
    older = sum(one.grants + one.to_revoke for one in found if one.role == "opens")
    if lost:
        text = f"{lost} records were sealed with a key that is not in the ring"
        cure = "put it back, at the end of ATM_ENCRYPTION_KEYS or into SECRET_KEY_FALLBACKS"
        return failed("records", text, cure)
    if strange and state.hooks.provider_loader is None and state.hooks.client_loader is None:
        text = f"{strange} records do not open, or are of no provider that is configured"
        cure = "configure the provider by its old name again; they go when their time is over"
        return failed("records", text, cure)
    if older or any(one.indexed for one in found if one.role == "opens"):
        text = f"{older} records still need an older key"
        return warning("records", text, "flask atm keys rotate, before you drop it")
    return ok("records", f"{sum(one.grants for one in found)} grants open")
