"""The times of the refresh engine: chosen once, derived from each other, checked."""

import random
from dataclasses import dataclass, replace
from typing import Final, Self

__all__ = ["EngineParameters"]

_LONGEST_BACKOFF: Final = 120.0


@dataclass(frozen=True, kw_only=True, slots=True)
class EngineParameters:
    """The times of the refresh engine, in seconds. Applications leave them alone.

    :param timeout: T, all that is sent to the token endpoint under one lease.
    :param send_window: S, from the first try to take the lease to the first byte written.
    :param doubt_wait: D, before a refresh token in doubt is sent again.
    :param store_connect: connecting to the store.
    :param store_operation: one operation of the store.
    :param store_retries: repetitions of an operation of the store.
    :param slack: added to the lease.
    :param backoff: the first pause after a failure; it doubles up to 120 s.
    :param poll_first: the first pause between two looks at the record.
    :param poll_last: the longest pause between two looks.
    :param min_ttl: a token with less than this left counts as expired (at most 5 % of its life).
    :param copy_age: how old a copy of a record may be that is used while the store is silent.
    :param young: an API may refuse a token of this age, and no new one is made.
    :param rejected_pause: pause after a renewed token was refused too; doubles up to 300 s.
    :param slot_pause: how long parameters that a server refused are not tried again.
    :param breaker_failures: failures in a row that open the breaker of an endpoint.
    :param breaker_pause: one attempt per this many seconds while it is open.
    :param client_pause: the same after ``invalid_client``.
    :param keep_interval: pause between attempts to store an answer that the store did not take.
    :raises ValueError: a time that is not positive, or a window that does not fit the lease.
    """

    timeout: float = 6.0
    send_window: float = 2.0
    doubt_wait: float = 1.0
    store_connect: float = 0.5
    store_operation: float = 1.0
    store_retries: int = 1
    slack: float = 1.0
    backoff: float = 2.0
    poll_first: float = 0.01
    poll_last: float = 0.25
    min_ttl: float = 5.0
    copy_age: float = 5.0
    young: float = 1.0
    rejected_pause: float = 10.0
    slot_pause: float = 60.0
    breaker_failures: int = 3
    breaker_pause: float = 5.0
    client_pause: float = 30.0
    keep_interval: float = 0.25

    def __post_init__(self) -> None:
        for name in self.__slots__:
            if getattr(self, name) <= 0 and name != "store_retries":
                raise ValueError(f"EngineParameters({name}=…) has to be positive")
        if self.poll_first > self.poll_last:
            raise ValueError("EngineParameters(poll_first=…) is at most poll_last")

    @property
    def lease(self) -> float:
        """L: longer than everything that a holder may do before it commits."""
        store = (self.store_connect + self.store_operation) * (1 + self.store_retries)
        return self.send_window + self.doubt_wait + self.timeout + store + self.slack

    @property
    def wait(self) -> float:
        """W: how long a caller waits; longer than a killed holder and its successor need."""
        return self.lease + self.timeout + 2.0 * self.slack

    def scaled(self, factor: float) -> Self:
        """Give the same engine at another speed, for tests: every time scaled."""
        times = {
            name: getattr(self, name) * factor
            for name in self.__slots__
            if isinstance(getattr(self, name), float) and name != "poll_first"
        }
        return replace(self, **times)

    def pause(self, failures: int, retry_after: float | None = None) -> float:
        """Give the pause after the n-th failure in a row: uniform in [d/2, d], or what was asked.

        :param failures: how many there were before this one.
        :param retry_after: what the server asked for, already limited.
        """
        longest = min(_LONGEST_BACKOFF, self.backoff * 2.0 ** min(failures, 10))
        jittered = random.uniform(longest / 2, longest)  # noqa: S311 - no secret
        return max(jittered, retry_after or 0.0)
