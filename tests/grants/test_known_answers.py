"""What was sealed once opens for ever: fixed keys and nonces, fixed bytes.

The bytes below were made by the primitives of ``cryptography`` alone. Where one of these tests
fails, every record that is out there would be lost: give the format another schema version.
"""

import json
from typing import Any

import pytest
from cryptography.hazmat.primitives import hashes, hmac
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from flask_atm.grants import indexes
from flask_atm.grants.control import Control, Stored
from flask_atm.grants.parameters import EngineParameters
from flask_atm.grants.record import Grant, Slot
from flask_atm.grants.seal import KeyRing
from flask_atm.grants.stores import MemoryStore
from flask_atm.grants.vault import Vault, record_key
from flask_atm.tokens import Secret

SECRET = bytes(range(32))
KEY_ID = "20917b82"
SUBKEY = "e9a873d0436bd0578c98536883343349e03555cf2ed9e235f28b7ec42144520a"
NONCE = bytes(range(100, 112))
RECORD = "0123456789abcdef" * 4
SMALL = "20917b826465666768696a6b6c6d6e6f416a8ce8833b755c2b7541107c9f5c1aadbdd09a5a"
SEALED = (
    "20917b826465666768696a6b6c6d6e6f9d4066f5e67cefd0b662594fadc18ce15c74f88699924dca4df89a2ae0"
    "82707501e19bf10037640eae1ed39d96c8698fa31e2428aba967de120c20cc9e332b36ca86a1c735a6d004c483"
    "3695af3406e5d2fab2e46c5d3819cdb270d61780220e7374542c242eaa83086d873505c3a6ab9205dc7f1edb6f"
    "a8f5e4fc6487afffc6bfb1ef1e0943f67ca5782121942a49f677d50b12bebd8200e8d4f1104d6df2b3dc9dc6cd"
    "98f045a010e7c60dbf61eb6246d49a676d13dce1e3c4d74dd12ea2c7b8078bbad7a5e609e9392e30afa2d51c68"
    "05ef9d0605beb54a9cbe6aeaa4775752afcff9f77e0e5431abc390ef58cec934e4bcc4037c013640a28b1edc2b"
    "7facbc0c5c50acaff49c50a2ede015257c9b819658183e424ca5af1ee593a4d83b80ea3a94e7d0e25e12a5d27c"
    "4bd68d819b40589b83c9064d97adb4889ca6d1d6bfeec637c5b895e72c5acb0debbb7b88ec04497b199d85a701"
    "c3beb3a10a3d876afca6e39e441cfbe993b467b56d43e6fd599b342908fcd205f2573d96a8105b500e530f3065"
    "fd3eb1a5f842995c7363b631e12734581dccd6bcae36131df2e2021e4fe309dd5f43efb793d9fb906fcd939d50"
    "26774cf3501c25eedc9b9b55237c629559bf78304edcf2d7fcfa5d7006dff76fa9e1e98b952568b56be9853840"
    "263032c03176e832cde5efcf10eee7c4c2ce3cd7"
)
GRANT = Grant(
    provider="oidc",
    issuer="https://id.example.com",
    client_id="shop",
    subject="alice",
    session_id="s1",
    refresh_token=Secret("r1"),
    claims={"sub": "alice", "name": "Ælice"},
    scope="openid",
    resources=("https://api.example.com",),
    signed_in_at=1700000000.25,
    ends_at=1701209600.25,
    slots={
        "": Slot(
            token=Secret("a1"),
            token_type="Bearer",
            expires_at=1700000300.25,
            lifetime=300.0,
            requested_at=1700000000.0,
            obtained_at=1700000000.25,
        )
    },
)


def expanded(info: bytes, length: int = 32) -> bytes:
    """RFC 5869, by other code than ours."""
    return HKDF(hashes.SHA256(), length, b"flask-atm 1", info).derive(SECRET)


def test_j5_the_name_of_a_key_and_its_subkeys_are_hkdf() -> None:
    assert expanded(b"key id", 4).hex() == KEY_ID
    assert KeyRing([SECRET]).key_ids == (KEY_ID,)
    assert expanded(f"grant\0{RECORD}".encode()).hex() == SUBKEY


def test_j5_a_sealed_value_of_fixed_key_and_nonce_opens() -> None:
    place: dict[str, str] = {"purpose": "p", "record": "r", "bound": "b"}
    assert KeyRing([SECRET]).open(bytes.fromhex(SMALL), **place) == b"hello"
    assert KeyRing([b"n" * 32, SECRET]).open(bytes.fromhex(SMALL), **place) == b"hello"
    box = AESGCM(expanded(b"p\0r")).encrypt(NONCE, b"hello", b"p\0r\0b")
    assert bytes.fromhex(KEY_ID) + NONCE + box == bytes.fromhex(SMALL)


def test_j5_what_is_sealed_now_is_what_other_code_makes() -> None:
    sealed = KeyRing([SECRET]).seal_json({"a": "ü"}, purpose="p", record="r", bound="b")
    nonce = sealed[4:16]
    box = AESGCM(expanded(b"p\0r")).encrypt(nonce, '{"a":"ü"}'.encode(), b"p\0r\0b")
    assert sealed == bytes.fromhex(KEY_ID) + nonce + box


def vault() -> Vault:
    return Vault(
        MemoryStore(),
        KeyRing([SECRET]),
        provider="oidc",
        parameters=EngineParameters(),
        is_ours=lambda grant: True,
    )


def test_j5_a_grant_that_was_sealed_once_is_read() -> None:
    control = Control(version=9, sealed_version=7, ends_at=1701209600.25)
    stored = Stored(control=control, sealed=bytes.fromhex(SEALED), now=1700000000.0)
    snapshot = vault().recognise(RECORD, stored)
    assert snapshot is not None
    assert snapshot.grant == GRANT


def test_j5_a_grant_is_sealed_as_it_always_was() -> None:
    sealed = vault().seal(RECORD, GRANT, version=7)
    subkey = AESGCM(bytes.fromhex(SUBKEY))
    bound = f"grant\0{RECORD}\0oidc\x007\x001".encode()
    text = subkey.decrypt(sealed[4:16], sealed[16:], bound)
    old = bytes.fromhex(SEALED)
    before: dict[str, Any] = json.loads(subkey.decrypt(old[4:16], old[16:], bound))
    # Members may come on top; none may go, or mean something else.
    assert before.items() <= json.loads(text).items()


def test_record_keys_are_sha_256() -> None:
    assert (
        record_key("oidc.grant-id")
        == "de7ea78572873ad5db4a3331fd54c8b735663d1910bd175d5cae31a711d2162e"
    )


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (
            indexes.entries(KeyRing([SECRET]), "https://id.example.com", "shop", "sub", "alice"),
            "646d26ea2d918e1bf11619011f02b24315bb711769b0db8582e9e288826aff18",
        ),
        (
            indexes.outboxes(KeyRing([SECRET]), "https://id.example.com", "shop"),
            "0092ff96bde94138a8e90c3ee93d2c3c0dc5a69c95bd9c471acfbbb0a0b6cdd0",
        ),
    ],
)
def test_j5_index_entries_of_a_fixed_key_are_fixed(found: list[str], expected: str) -> None:
    assert found == [expected]


def test_j5_digests_are_hmac_under_the_extracted_key() -> None:
    extract = hmac.HMAC(b"flask-atm 1", hashes.SHA256())
    extract.update(SECRET)
    digest = hmac.HMAC(extract.finalize(), hashes.SHA256())
    digest.update(b'digest\0["a", "\\u00fc"]')
    assert KeyRing([SECRET]).digest("a", "ü") == digest.finalize().hex()
