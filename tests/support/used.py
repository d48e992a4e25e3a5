"""A database in use that a test may lose: PayMe's data under another name, an allowed target of restores."""

import itertools
from collections.abc import Iterator
from contextlib import contextmanager

import psycopg
from psycopg import sql

from tests.support.installation import Installation
from tests.support.site import Site
from tests.support.waiting import eventually

_numbers = itertools.count(1)


def copy_payme(site: Site, name: str) -> None:
    """PayMe's database once more, under that name."""

    def copied() -> bool:
        with site.admin("postgres") as admin:
            try:
                admin.execute(f"CREATE DATABASE {name} TEMPLATE payme OWNER payme_owner")
            except psycopg.errors.ObjectInUse:
                return False
        return True

    eventually(copied, "nobody in the template")


@contextmanager
def used_database(installation: Installation) -> Iterator[str]:
    """Its name, for the block; what swaps and restores made of it goes, too."""
    name, site = f"payme_used_{next(_numbers)}", installation.site
    copy_payme(site, name)
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
