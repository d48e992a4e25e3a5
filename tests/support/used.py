"""A database in use that a test may lose: PayMe's data under another name, an allowed target of restores."""

import itertools
from collections.abc import Iterator
from contextlib import contextmanager

from psycopg import sql

from tests.support.installation import Installation

_numbers = itertools.count(1)


@contextmanager
def used_database(installation: Installation) -> Iterator[str]:
    """Its name, for the block; what swaps and restores made of it goes, too."""
    name, site = f"payme_used_{next(_numbers)}", installation.site
    site.copy_payme(name)
    with site.admin("postgres") as admin:
        admin.execute(f"GRANT CONNECT ON DATABASE {name} TO payme_app; REVOKE CONNECT ON DATABASE {name} FROM PUBLIC")
        admin.execute(f"ALTER ROLE payme_app IN DATABASE {name} SET statement_timeout TO '30s'")
    installation.set("BACKUP__RESTORE_TARGETS", f"other,{name}")
    try:
        yield name
    finally:
        with site.admin("postgres") as admin:
            rows = admin.execute("SELECT datname FROM pg_database WHERE datname LIKE %s", [f"{name}%"]).fetchall()
            for (found,) in rows:
                admin.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(found)))
