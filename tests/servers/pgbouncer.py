"""PgBouncer with transaction pooling in front of a PostgreSQL; for ``tox -e system``."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from .faulty import NotInTimeError, reserve_port
from .postgres_server import PostgresServer, account, janitor

__all__ = ["pgbouncer"]

WAIT = 20.0
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


@contextmanager
def pgbouncer(postgres: PostgresServer, *, connections: int) -> Iterator[str]:
    """Run it; gives the URL for SQLAlchemy.

    :param connections: to the server, for all clients.
    """
    folder = Path(tempfile.mkdtemp(prefix="flask-atm-pgbouncer-"))
    reserved = reserve_port() or socket.create_server(("127.0.0.1", 0))
    port = reserved.getsockname()[1]
    settings = SETTINGS.format(
        folder=folder, port=port, postgres=postgres.port, connections=connections
    )
    (folder / "settings.ini").write_text(settings, "utf-8")
    (folder / "users").write_text('"postgres" ""\n', "utf-8")
    if whom := account():
        os.chown(folder, whom["user"], whom["group"])
    cleaning = janitor(folder)
    process = subprocess.Popen(
        [shutil.which("pgbouncer") or "/usr/sbin/pgbouncer", str(folder / "settings.ini")],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
        **whom,
    )
    try:
        (folder / "pid").write_text(str(process.pid), "ascii")
        _wait_for(port, process)
        yield f"postgresql+psycopg://postgres@127.0.0.1:{port}/postgres"
    finally:
        (folder / "pid").unlink(missing_ok=True)
        process.kill()
        process.wait(WAIT)
        reserved.close()
        cleaning.communicate(timeout=WAIT)


def _wait_for(port: int, process: subprocess.Popen[bytes]) -> None:
    give_up = time.monotonic() + WAIT
    while True:
        with suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        if time.monotonic() > give_up or process.poll() is not None:
            raise NotInTimeError("PgBouncer does not start")
        time.sleep(0.01)
