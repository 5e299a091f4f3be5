"""The steps of an atomic store, for stores that can run a Python function atomically on a row."""

from collections.abc import Callable, Sequence
from typing import TypeVar

from flask_atm.grants import control as steps
from flask_atm.grants.control import Begun, Control, Outcome

__all__ = ["Step", "SteppedStore"]

T = TypeVar("T")

#: The present control and the store's clock in; the answer, and the new control if it changes, out.
Step = Callable[[Control | None, float], tuple[T, Control | None]]


class SteppedStore:
    """Gives a store all the steps that change a record, for its one :meth:`_step`."""

    def _step(
        self,
        key: str,
        step: Step[T],
        sealed: bytes | None = None,
        index: Sequence[str] | None = None,
    ) -> T:
        """Run a step on a record, atomically.

        :param step: pure and quick; it may run again after a conflict.
        :param sealed: the new sealed bytes, if the control changes; ``None`` keeps the old ones.
        :param index: the new index entries, if the control changes; ``None`` keeps the old ones.
        """
        raise NotImplementedError

    def begin(
        self, key: str, *, owner: str, expected_version: int, lease: float, intent: str | None
    ) -> Begun:
        """See :class:`~flask_atm.protocols.AtomicGrantStore`."""

        def step(control: Control | None, now: float) -> tuple[Begun, Control | None]:
            if control is None:
                return Begun(status="gone", now=now), None
            return steps.begin(
                control,
                now,
                owner=owner,
                expected_version=expected_version,
                lease=lease,
                intent=intent,
            )

        return self._step(key, step)

    def commit(self, key: str, sealed: bytes, *, expected_version: int, commit_id: str) -> Outcome:
        """See :class:`~flask_atm.protocols.AtomicGrantStore`."""

        def step(control: Control | None, now: float) -> tuple[Outcome, Control | None]:
            if control is None:
                return "gone", None
            return steps.commit(
                control, now, expected_version=expected_version, commit_id=commit_id
            )

        return self._step(key, step, sealed)

    def update(
        self,
        key: str,
        sealed: bytes,
        *,
        expected_version: int,
        index: Sequence[str] | None = None,
    ) -> Outcome:
        """See :class:`~flask_atm.protocols.AtomicGrantStore`."""

        def step(control: Control | None, now: float) -> tuple[Outcome, Control | None]:
            if control is None:
                return "gone", None
            return steps.update(control, now, expected_version=expected_version)

        return self._step(key, step, sealed, index)

    def adopt(self, key: str, sealed: bytes, *, expected_version: int, version: int) -> Outcome:
        """See :class:`~flask_atm.protocols.AtomicGrantStore`."""

        def step(control: Control | None, now: float) -> tuple[Outcome, Control | None]:
            if control is None:
                return "gone", None
            return steps.adopt(control, now, expected_version=expected_version, version=version)

        return self._step(key, step, sealed)

    def abort(
        self,
        key: str,
        *,
        owner: str,
        clear_intent: bool,
        pause: float = 0.0,
        failures: int = 0,
        suspect: str | None = None,
        dead: str | None = None,
    ) -> None:
        """See :class:`~flask_atm.protocols.AtomicGrantStore`."""

        def step(control: Control | None, now: float) -> tuple[None, Control | None]:
            if control is None:
                return None, None
            return None, steps.abort(
                control,
                now,
                owner=owner,
                clear_intent=clear_intent,
                pause=pause,
                failures=failures,
                suspect=suspect,
                dead=dead,
            )

        return self._step(key, step)
