"""What a copy of a grant is made of, and what of a grant is copied."""

import json
import struct
from dataclasses import dataclass, field, replace
from typing import Final

from flask_atm.grants.record import SCHEMA, Grant, Snapshot
from flask_atm.grants.seal import KeyRing, Unreadable

__all__ = ["Copy", "CopySeal", "for_cookie", "has_id_tokens"]

_PURPOSE: Final = "copy"
#: Version, end in milliseconds, and the length of the pair's name that follows.
_HEAD: Final = struct.Struct(">QQB")
#: A member of a grant whose ID token was left out of a copy.
_LEFT_OUT: Final = "id_token_left_out"


def for_cookie(grant: Grant, *, slot: str) -> Grant:
    """Give what a cookie has room for: no ID token, and of the access tokens the sign-in's own."""
    kept = {key: one for key, one in grant.slots.items() if key == slot}
    other = {**grant.other, _LEFT_OUT: True} if grant.id_token else grant.other
    return replace(grant, id_token=None, slots=kept, other=other)


def has_id_tokens(grant: Grant) -> bool:
    """Tell whether a grant came with an ID token, also where a copy has left it out."""
    return grant.id_token is not None or _LEFT_OUT in grant.other


@dataclass(frozen=True, kw_only=True, slots=True)
class Copy:
    """A copy that opened.

    :param version: the version of the record that it was made of.
    :param ends_at: the absolute end of the grant.
    :param pair: the name of the atomic store that had the record.
    """

    version: int
    ends_at: float
    pair: str
    _text: bytes = field(repr=False)

    def grant(self) -> Grant | None:
        """Give the grant; ``None``: nobody can read it. Each request looks at the rest only."""
        try:
            return Grant.from_json(json.loads(self._text))
        except (ValueError, RecursionError):
            return None


@dataclass(frozen=True, kw_only=True, slots=True)
class CopySeal:
    """Seals and opens the copies of one provider's grants. Thread-safe.

    A copy opens for its own record only, and is no record itself.
    """

    ring: KeyRing
    provider: str

    def seal(self, snapshot: Snapshot, grant: Grant, *, pair: str) -> bytes:
        """Make a copy.

        :param snapshot: the record.
        :param grant: what is copied of its grant.
        :param pair: the name of the store that has the record.
        """
        control, name = snapshot.control, pair.encode()
        # Rounded down: no copy is there any more when its tombstone has gone.
        head = _HEAD.pack(control.sealed_version, int(control.ends_at * 1000), len(name))
        text = json.dumps(grant.as_json(), separators=(",", ":"), ensure_ascii=False)
        return self.ring.seal(
            head + name + text.encode("utf-8", "surrogatepass"),
            purpose=_PURPOSE,
            record=snapshot.key,
            bound=self._bound,
        )

    def open(self, key: str, sealed: bytes) -> Copy | None:
        """Open a copy; ``None``: cut, changed, of another user, application, key or provider."""
        try:
            data = self.ring.open(bytes(sealed), purpose=_PURPOSE, record=key, bound=self._bound)
            version, ends_at, length = _HEAD.unpack_from(data)
            end = _HEAD.size + length
            return Copy(
                version=version,
                ends_at=ends_at / 1000,
                pair=data[_HEAD.size : end].decode(),
                _text=data[end:],
            )
        except (Unreadable, ValueError, struct.error):
            return None

    def is_current(self, sealed: bytes) -> bool:
        """Tell whether the first key of the ring sealed this."""
        return self.ring.is_current(bytes(sealed))

    @property
    def _bound(self) -> str:
        return f"{self.provider}\0{SCHEMA}"
