"""What the steps remember in the target database itself, so that it commits with the rows it speaks of."""

from payme_ops.foundation.postgres import speaking
from payme_ops.migration.desk import MigrationDesk, owner_session
from payme_ops.migration.names import Names, statement


def ensure(desk: MigrationDesk) -> None:
    """Make the state schema and its tables unless they are there. Raises NotFound, DatabaseError."""
    with owner_session(desk, "state") as connection, speaking("make the migration's own tables"):
        connection.execute(statement(desk.names, "state.sql"))


def subject(names: Names) -> str:
    """What a row of these tables is about: public.users.phone_number."""
    return f"{names.title}.{names.plaintext}"
