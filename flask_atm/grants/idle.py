"""The end of a grant that nobody uses: when it was used last, and whether that is too long ago."""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Final

from flask_atm.errors import StoreError
from flask_atm.grants.control import Control, in_doubt, lease_left
from flask_atm.grants.record import Grant, Snapshot

__all__ = ["Idle", "last_use"]

log = logging.getLogger("flask_atm.store")

#: The use of a grant is written down once in so many parts of the time-out.
_PARTS: Final = 20
#: Seconds for which no use is written down after a store did not take one.
_PAUSE: Final = 5.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Idle:
    """Ends grants that were not used for ``timeout`` seconds. Thread-safe.

    All instants are by the store's clock. While a refresh runs, or one was lost, the use of a
    grant cannot be written down. What it may have been used for until then is not held against
    it: a refresh that runs, a token that was valid, an attempt that has failed.

    :param write: puts a grant over the one that was read; ``False``: somebody else has.
    """

    timeout: float
    write: Callable[[Snapshot, Grant], bool]
    _silent: list[float] = field(default_factory=list)

    def is_over(self, snapshot: Snapshot) -> bool:
        """Tell whether a grant was unused for too long."""
        control, now = snapshot.control, snapshot.now
        if lease_left(control, now):
            return False
        last = last_use(snapshot.grant)
        if in_doubt(control, now):
            valid = (slot.expires_at for slot in snapshot.grant.slots.values())
            last = max((last, control.retry_at, *valid))
        return now - last >= self.timeout

    def used(self, snapshot: Snapshot, *, at_once: bool = False) -> Snapshot:
        """Write down that a grant is used, if that is due; give it as it is then.

        :param at_once: whether it is due in any case.
        """
        grant, now = snapshot.grant, snapshot.now
        # A use in the future comes from a clock that jumped.
        is_due = at_once or abs(now - last_use(grant)) >= self.timeout / _PARTS
        if not is_due or _is_busy(snapshot.control, now) or not self._may_write():
            return snapshot
        new = replace(grant, used_at=now)
        try:
            written = self.write(snapshot, new)
        except StoreError as error:
            # It can be read, so it is served: what is lost is one of twenty parts.
            self._silent[:] = [time.monotonic()]
            log.debug("the use of a grant is not written down: %s", error)
            return snapshot
        if not written:
            return snapshot
        version = snapshot.control.version + 1
        control = replace(snapshot.control, version=version, sealed_version=version)
        return replace(snapshot, grant=new, control=control)

    def _may_write(self) -> bool:
        return not self._silent or time.monotonic() - self._silent[0] >= _PAUSE


def last_use(grant: Grant) -> float:
    """Give when a grant was used last, as far as it was written down."""
    # A grant from before there was a time-out was used when it was renewed, at least.
    renewed = (slot.obtained_at for slot in grant.slots.values())
    return grant.used_at or max((grant.signed_in_at, *renewed))


def _is_busy(control: Control, now: float) -> bool:
    return bool(lease_left(control, now)) or in_doubt(control, now)
