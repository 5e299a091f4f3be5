"""``@requires_login`` and ``@requires_token``: guards of views, and the meaning of the proxies."""

from collections.abc import Callable, Iterable
from functools import wraps
from inspect import iscoroutinefunction
from typing import Any, TypeVar, cast, overload

from flask import has_request_context

from flask_atm.globals import current_login, current_user_token, meaning
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
                return await view(*args, **kwargs)
    else:

        @wraps(view)
        def guarded(*args: Any, **kwargs: Any) -> Any:
            with meaning(provider=provider, parameters=parameters):
                check()
                return view(*args, **kwargs)

    return cast(V, guarded)
