"""Blinker signals. The sender is the Flask application; every value comes as a keyword.

They are sent after the change is stored and with no lock held, in the thread that made it.
"""

from blinker import Namespace

__all__ = [
    "grant_revoked",
    "login_failed",
    "token_refresh_failed",
    "token_refreshed",
    "user_logged_in",
    "user_logged_out",
]

_signals = Namespace()

#: A user signed in: ``provider``, ``grant_id``, ``claims``.
user_logged_in = _signals.signal("user-logged-in")
#: A sign-in was ended, by the user, the provider, an operator, or because nobody used it:
#: ``provider``, ``grant_id`` (``None`` where many were ended at once, from outside), ``claims``.
user_logged_out = _signals.signal("user-logged-out")
#: A refresh succeeded: ``provider``, ``grant_id``, ``claims``, ``old_claims``.
token_refreshed = _signals.signal("token-refreshed")
#: A refresh failed: ``provider``, ``grant_id``, ``error``.
token_refresh_failed = _signals.signal("token-refresh-failed")
#: The provider ended the grant (``invalid_grant``): ``provider``, ``grant_id``, ``claims``.
grant_revoked = _signals.signal("grant-revoked")
#: A sign-in failed: ``provider``, ``error`` (the :exc:`~flask_atm.LoginFailed`).
login_failed = _signals.signal("login-failed")
