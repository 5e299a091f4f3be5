"""``@requires_login`` and ``@requires_token``: guards of views, and the meaning of the proxies."""

from collections.abc import Callable, Iterable, Iterator
from functools import wraps
from inspect import iscoroutinefunction
from typing import Any, TypeVar, cast, overload

from flask import has_request_context
from werkzeug.wrappers import Response

from flask_atm.globals import current_login, current_user_token
from flask_atm.meaning import Meaning, mean_until_the_end, meaning, meant
from flask_atm.tokens import TokenParameters

__all__ = ["requires_login", "requires_token"]

V = TypeVar("V", bound=Callable[..., Any])
Guard = Callable[..., Any]


@overload
def requires_login(view: V) -> V: ...
@overload
def requires_login(view: None = None, *, provider: str | None = None) -> Guard: ...
def requires_login(view: Any = None, *, provider: str | None = None) -> Any:
    """Let only those in who are signed in. One read of the store, never the network.

    Bare or with arguments; for functions, async ones too, ``MethodView.decorators``, and
    ``before_request`` of a blueprint. Inside, the proxies and sessions mean this provider.

    :param provider: by default the one that is meant where none is named.
    :raises LoginRequired: nobody is signed in there; the default handler starts the sign-in.
    """
    return _guard(view, lambda: current_login.provider, provider, None)


@overload
def requires_token(view: V) -> V: ...
@overload
def requires_token(
    view: None = None,
    *,
    provider: str | None = None,
    scope: str | Iterable[str] | None = None,
    resource: str | Iterable[str] | None = None,
    audience: str | None = None,
) -> Guard: ...
def requires_token(
    view: Any = None,
    *,
    provider: str | None = None,
    scope: str | Iterable[str] | None = None,
    resource: str | Iterable[str] | None = None,
    audience: str | None = None,
) -> Any:
    """Let only those in for whom there is a usable access token, renewed if that is due.

    Used as :func:`requires_login`. Inside, the proxies and sessions mean this provider and these
    parameters.

    :param scope: asked for instead of the configured one; so are ``resource`` and ``audience``.
    :raises LoginRequired: there is none without a new sign-in.
    :raises InsufficientScope: the user did not grant it.
    :raises ServerUnavailable: there may be one later.
    """
    parameters = None
    if scope is not None or resource is not None or audience is not None:
        parameters = TokenParameters.of(scope=scope, resource=resource, audience=audience)
    return _guard(view, lambda: current_user_token.provider, provider, parameters)


def _guard(
    view: Any,
    check: Callable[[], str],
    provider: str | None,
    parameters: TokenParameters | None,
) -> Any:
    def guard(view: Any = None) -> Any:
        if view is not None:
            return _wrap(view, check, provider, parameters)
        # before_request(requires_login(provider="x")) calls what is a decorator elsewhere.
        with meaning(provider=provider, parameters=parameters):
            check()
            present = meant()
        mean_until_the_end(present)
        return None

    if view is None and provider is None and parameters is None and has_request_context():
        # before_request(requires_login): a call without a view, in the middle of a request.
        return guard()
    return guard if view is None else guard(view)


def _wrap(
    view: V,
    check: Callable[[], str],
    provider: str | None,
    parameters: TokenParameters | None,
) -> V:
    if iscoroutinefunction(view):

        @wraps(view)
        async def guarded(*args: Any, **kwargs: Any) -> Any:
            # In here, not around the call: the coroutine runs after the call has returned.
            with meaning(provider=provider, parameters=parameters):
                check()
                return _lasting(await view(*args, **kwargs), provider, parameters)
    else:

        @wraps(view)
        def guarded(*args: Any, **kwargs: Any) -> Any:
            with meaning(provider=provider, parameters=parameters):
                check()
                return _lasting(view(*args, **kwargs), provider, parameters)

    return cast(V, guarded)


# -- streams


def _lasting(answer: Any, provider: str | None, parameters: TokenParameters | None) -> Any:
    """Let the stream in an answer mean what its view did: it runs after the view has returned."""
    if provider is None and parameters is None:
        return answer
    if isinstance(answer, tuple) and answer:
        return (_lasting(answer[0], provider, parameters), *answer[1:])
    if isinstance(answer, Iterator):
        return _Stream(answer, meant())
    if (
        isinstance(answer, Response)
        and isinstance(answer.response, Iterator)
        and not answer.direct_passthrough
    ):
        answer.response = _Stream(answer.response, meant())
    return answer


class _Stream:
    """What a view streams, each part of it made under the meaning of the view."""

    def __init__(self, parts: Iterator[Any], present: Meaning) -> None:
        self._parts = parts
        self._present = present

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        present = self._present
        with meaning(
            provider=present.provider, grant_id=present.grant_id, parameters=present.parameters
        ):
            return next(self._parts)

    def close(self) -> None:
        """End the stream early."""
        close = getattr(self._parts, "close", None)
        if close is not None:
            close()
