"""Sealing: AES-256-GCM with a subkey per purpose and record, from a ring of keys.

A sealed value is ``key id (4 bytes) + nonce (12) + ciphertext and tag``. The first key of the ring
seals, all of them open. Purpose, record, provider, version and schema are associated data: a value
opens only in the place that it was made for (RFC 5116, RFC 5869). Nothing is compressed, because
the length of a compressed secret says something about it; nothing is pickled.
"""

import hmac
import json
import os
from collections.abc import Iterable
from typing import Any, Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

__all__ = ["KeyRing", "Unreadable"]

_KEY_ID: Final = 4
_NONCE: Final = 12
_SHORTEST: Final = _KEY_ID + _NONCE + 16
_SALT: Final = b"flask-atm 1"


class Unreadable(Exception):
    """A sealed value that does not open: for the user it is not there, in the store it stays."""


class KeyRing:
    """The keys that seal and open. Thread-safe; knows no state but its keys.

    :param secrets: secrets of 32 bytes or more; the first one seals, all of them open.
    """

    __slots__ = ("_first", "_keys")

    def __init__(self, secrets: Iterable[bytes]) -> None:
        # HKDF-Extract (RFC 5869, section 2.2), once; _subkey is HKDF-Expand.
        extracted = [hmac.digest(_SALT, secret, "sha256") for secret in secrets]
        if not extracted:
            raise ValueError("a key ring needs at least one secret")
        self._keys = {self._id(key): key for key in reversed(extracted)}
        self._first = self._id(extracted[0])

    def __repr__(self) -> str:
        return f"<KeyRing of {len(self._keys)}>"

    @staticmethod
    def _id(key: bytes) -> bytes:
        return hmac.digest(key, b"key id\x01", "sha256")[:_KEY_ID]

    @staticmethod
    def _subkey(key: bytes, purpose: str, record: str) -> bytes:
        return hmac.digest(key, f"{purpose}\0{record}\x01".encode(), "sha256")

    def seal(self, data: bytes, *, purpose: str, record: str, bound: str = "") -> bytes:
        """Seal bytes for one place.

        :param data: what to seal.
        :param purpose: the kind of value, such as ``grant``.
        :param record: the record that it belongs to.
        :param bound: whatever else has to be the same when it is opened.
        """
        nonce = os.urandom(_NONCE)
        subkey = self._subkey(self._keys[self._first], purpose, record)
        box = AESGCM(subkey).encrypt(nonce, data, f"{purpose}\0{record}\0{bound}".encode())
        return self._first + nonce + box

    def open(self, sealed: bytes, *, purpose: str, record: str, bound: str = "") -> bytes:
        """Open what :meth:`seal` made for the same place.

        :raises Unreadable: another place, another key, or not what it was.
        """
        key = self._keys.get(sealed[:_KEY_ID])
        if key is None or len(sealed) < _SHORTEST:
            raise Unreadable("sealed with a key that is not in the ring")
        cipher = AESGCM(self._subkey(key, purpose, record))
        nonce, box = sealed[_KEY_ID : _KEY_ID + _NONCE], sealed[_KEY_ID + _NONCE :]
        try:
            return cipher.decrypt(nonce, box, f"{purpose}\0{record}\0{bound}".encode())
        except InvalidTag:
            pass
        raise Unreadable("changed, or made for another place")

    def seal_json(self, value: Any, *, purpose: str, record: str, bound: str = "") -> bytes:
        """Seal a JSON value, see :meth:`seal`."""
        text = json.dumps(value, separators=(",", ":"), ensure_ascii=False)
        # Half a surrogate pair in a claim is no text, but no reason to lose a refresh token either.
        data = text.encode("utf-8", "surrogatepass")
        return self.seal(data, purpose=purpose, record=record, bound=bound)

    def open_json(self, sealed: bytes, *, purpose: str, record: str, bound: str = "") -> Any:
        """Open a JSON value, see :meth:`open`.

        :raises Unreadable: it does not open, or what is inside is not ours.
        """
        data = self.open(sealed, purpose=purpose, record=record, bound=bound)
        try:
            return json.loads(data)
        except (ValueError, RecursionError):
            pass
        raise Unreadable("no JSON inside the seal")

    def is_current(self, sealed: bytes) -> bool:
        """Tell whether the first key of the ring sealed this."""
        return sealed[:_KEY_ID] == self._first

    @property
    def key_ids(self) -> tuple[str, ...]:
        """The names of the keys as 8 hexadecimal digits, the one that seals first."""
        others = [name.hex() for name in reversed(self._keys) if name != self._first]
        return (self._first.hex(), *others)

    @staticmethod
    def key_id(sealed: bytes) -> str:
        """Give the name of the key that sealed this, be it in the ring or not."""
        return sealed[:_KEY_ID].hex()

    def knows(self, sealed: bytes) -> bool:
        """Tell whether a key of the ring may have sealed this."""
        return sealed[:_KEY_ID] in self._keys

    def digest(self, *parts: str) -> str:
        """Give a keyed hash of texts: equal for equal parts, of no use without the ring.

        :returns: 64 hexadecimal digits, by the first key.
        """
        return self.digests(*parts)[0]

    def digests(self, *parts: str) -> list[str]:
        """Give the keyed hash by every key of the ring, the first one first."""
        text = json.dumps(parts).encode()
        ordered = sorted(self._keys.items(), key=lambda item: item[0] != self._first)
        return [hmac.digest(key, b"digest\0" + text, "sha256").hex() for _, key in ordered]
