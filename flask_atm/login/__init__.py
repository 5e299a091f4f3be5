"""Sign-in: from the first redirect to the grant."""

from flask_atm.login.flow import begin, begin_again, finish, registry

__all__ = ["begin", "begin_again", "finish", "registry"]
