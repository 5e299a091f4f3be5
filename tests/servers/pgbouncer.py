"""PgBouncer with transaction pooling in front of a PostgreSQL; for ``tox -e system``."""

from __future__ import annotations

import os
import shutil
from typing import Any

from .postgres_server import PostgresServer, account
from .program import Program

__all__ = ["PgBouncer"]

SETTINGS = """
[databases]
postgres = host=127.0.0.1 port={postgres}
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {port}
unix_socket_dir =
auth_type = trust
auth_file = {folder}/users
pool_mode = transaction
default_pool_size = {connections}
"""


class PgBouncer(Program):
    """It takes all clients, and has a few connections to the server.

    :param connections: so many.
    """

    name = "pgbouncer"

    def __init__(self, postgres: PostgresServer, *, connections: int) -> None:
        super().__init__()
        self._postgres = postgres
        self._connections = connections
        self._account = account()

    def prepare(self) -> None:
        """Write its settings."""
        settings = SETTINGS.format(
            folder=self.folder,
            port=self.port,
            postgres=self._postgres.port,
            connections=self._connections,
        )
        (self.folder / "settings.ini").write_text(settings, "utf-8")
        (self.folder / "users").write_text('"postgres" ""\n', "utf-8")
        if self._account:
            os.chown(self.folder, self._account["user"], self._account["group"])

    def settings(self) -> dict[str, Any]:
        return self._account

    def command(self) -> list[str]:
        program = shutil.which("pgbouncer") or "/usr/sbin/pgbouncer"
        return [program, str(self.folder / "settings.ini")]

    def is_ready(self) -> bool:
        return self.takes_connections()

    def url(self) -> str:
        """For SQLAlchemy."""
        return f"postgresql+psycopg://postgres@127.0.0.1:{self.port}/postgres"
