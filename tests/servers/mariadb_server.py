"""A MariaDB of the test's own, by Debian's ``mariadb-server``; for ``tox -e system``."""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import subprocess
from typing import Any

from .program import Program

__all__ = ["MariaDBServer"]

#: One statement per line.
GRANTS = """CREATE DATABASE IF NOT EXISTS app;
CREATE USER IF NOT EXISTS app@localhost;
GRANT ALL ON app.* TO app@localhost;
"""


class MariaDBServer(Program):
    """A server with the database ``app``.

    :param options: further ones, such as ``"--default-time-zone=-03:30"``.
    """

    name = "mariadb"
    patience = 30.0

    def __init__(self, *options: str) -> None:
        super().__init__(*options)
        self._account = f"--user={pwd.getpwuid(os.getuid()).pw_name}"

    def prepare(self) -> None:
        """Make the database files."""
        command = ["mariadb-install-db", "--no-defaults", self._account, "--skip-test-db"]
        command += [f"--datadir={self.folder / 'data'}"]
        subprocess.run(command, check=True, capture_output=True, timeout=120)
        (self.folder / "grants.sql").write_text(GRANTS, "utf-8")

    def url(self, *, driver: str = "mariadb+pymysql") -> str:
        """For SQLAlchemy."""
        return f"{driver}://app@127.0.0.1:{self.port}/app"

    def command(self) -> list[str]:
        program = shutil.which("mariadbd") or "/usr/sbin/mariadbd"
        command = [program, "--no-defaults", self._account]
        command += [f"--datadir={self.folder / 'data'}", f"--socket={self.folder / 'socket'}"]
        command += [f"--init-file={self.folder / 'grants.sql'}"]
        return [*command, f"--port={self.port}", "--bind-address=127.0.0.1"]

    def is_ready(self) -> bool:
        import pymysql

        with contextlib.suppress(pymysql.Error):
            self.execute("SELECT 1")
            return True
        return False

    def execute(self, statement: str) -> list[Any]:
        """Run a statement; give the rows."""
        import pymysql

        connection = pymysql.connect(
            host="127.0.0.1", port=self.port, user="app", database="app", autocommit=True
        )
        with connection, connection.cursor() as cursor:
            cursor.execute(statement)
            return list(cursor.fetchall())

    def kill_connections(self) -> int:
        """End the connections of all others; give how many there were."""
        rows = self.execute(
            "SELECT id FROM information_schema.processlist WHERE id <> connection_id()"
        )
        for (number,) in rows:
            with contextlib.suppress(Exception):
                self.execute(f"KILL {number}")
        return len(rows)
