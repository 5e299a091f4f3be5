"""``flask atm``: what is configured, what a server says of itself, what the store holds.

Nothing here shows a secret, but the token that ``--reveal`` puts on a terminal, and nothing shows
who the users are.
"""

from flask_atm.cli import configured, ddl, doctor, grants, keys, purge, revoke, servers
from flask_atm.cli.group import atm

__all__ = ["atm", "configured", "ddl", "doctor", "grants", "keys", "purge", "revoke", "servers"]
