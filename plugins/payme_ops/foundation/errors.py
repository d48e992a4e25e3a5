"""Every failure as a typed exception that names what was expected, what was found and what to do next.

PaymeOpsError
├── SettingsError              a variable is missing or malformed; nothing was touched
│   ├── KeyRejected            ENCRYPTION_KEY is none, or not one that may be used here
│   ├── SecretForbidden        this machine's role may not read that secret
│   └── SecretMissing          AWS Secrets Manager has no secret of that name
├── PreflightFailed            at least one check said fail
├── Unavailable                worth another try as it is
│   ├── DatabaseUnavailable    connection refused, lost or shut down
│   ├── StoreUnavailable       S3 answered 5xx, throttled, or not at all
│   ├── PreflightInconclusive  a check could not be measured; none failed
│   ├── SteppedAside           the dump gave way to somebody's lock three times
│   └── LockBudgetSpent        a change of a table did not get its lock in time; the table is as it was
├── LeaseHeld                  another run holds the lease; says which, since when
├── LeaseLost                  our lease went away while we worked
├── DatabaseError              the server refused a statement (SQLSTATE, table, constraint; never row data)
├── StoreRefused               S3 answered 4xx: no permission, no bucket
├── ServiceRefused             the PayMe API, the status page or the mail server answered no
├── DumpFailed                 a client tool ended with an error
├── AlreadyExists              the target is there already; it is never overwritten
├── NotApproved                no person, or the wrong one, has agreed to what was shown
├── UnexpectedSchema           the table is not as a step of the migration expects it
├── GateClosed                 a check of the migration did not pass
├── Aborted                    a person told the backfill to end
├── NotFound                   the named backup, database or object is not there
└── IntegrityError             never retried: bytes or facts are not what they should be
    ├── HashMismatch           length or SHA-256 differs
    ├── Untrusted              unsigned, or signed by an unknown key
    ├── ManifestInvalid        not a manifest, or one of a newer version
    ├── RecordInvalid          not a record, or one of a newer version
    ├── TruthMismatch          restored rows or content differ from the manifest
    └── Refuted                a restore test found that the backup is not what it should be
"""

from payme_ops.foundation.scrub import scrub


class PaymeOpsError(Exception):
    """Base of all. `str()` is one line that can be shown to a person as it is: no secret, no row data."""

    def __init__(self, what: str, *, expected: str = "", found: str = "", remedy: str = "") -> None:
        # Names and messages from outside (tables, server errors) may hold what must not leave its place.
        self.what, self.expected, self.found, self.remedy = map(scrub, (what, expected, found, remedy))
        super().__init__(self.what, self.expected, self.found, self.remedy)

    def __str__(self) -> str:
        parts = [self.what.rstrip(".")]
        if self.expected:
            parts.append(f"expected {self.expected}")
        if self.found:
            parts.append(f"found {self.found}")
        text = "; ".join(parts) + "."
        return f"{text} To do: {self.remedy}" if self.remedy else text

    def __reduce__(self) -> tuple[object, ...]:
        return (_rebuild, (type(self), self.__dict__.copy()))


def _rebuild(cls: type[PaymeOpsError], state: dict[str, object]) -> PaymeOpsError:
    error = cls.__new__(cls)
    error.__dict__.update(state)
    error.args = (state["what"], state["expected"], state["found"], state["remedy"])
    return error


class SettingsError(PaymeOpsError):
    """Settings are incomplete or malformed."""


class KeyRejected(SettingsError):
    """An encryption key that is missing, malformed or used for something else."""


class SecretForbidden(SettingsError):
    """AWS Secrets Manager says that whoever asked may not read that secret."""


class SecretMissing(SettingsError):
    """AWS Secrets Manager answered that it has no such secret."""


class PreflightFailed(PaymeOpsError):
    """At least one check said fail."""


class Unavailable(PaymeOpsError):
    """A service could not be reached; trying again may help."""


class DatabaseUnavailable(Unavailable):
    """PostgreSQL refused, dropped or never answered the connection."""


class StoreUnavailable(Unavailable):
    """The object store answered 5xx or not at all."""


class PreflightInconclusive(Unavailable):
    """No check failed, but some could not be measured."""


class SteppedAside(Unavailable):
    """The dump released its locks for somebody who waited behind them, as often as it may."""


class LockBudgetSpent(Unavailable):
    """A statement did not get its lock within the budget; nothing was changed and nobody was made to wait long."""


class LeaseHeld(PaymeOpsError):
    """Somebody else holds the lease."""


class LeaseLost(PaymeOpsError):
    """The lease was taken over, or its session ended, while the work was under way."""


class DatabaseError(PaymeOpsError):
    """The server refused a statement. Carries SQLSTATE, table and constraint, never DETAIL or CONTEXT."""

    def __init__(self, what: str, *, sqlstate: str = "", expected: str = "", found: str = "", remedy: str = "") -> None:
        self.sqlstate = sqlstate
        super().__init__(what, expected=expected, found=found, remedy=remedy)


class StoreRefused(PaymeOpsError):
    """The object store answered 4xx."""


class ServiceRefused(PaymeOpsError):
    """The PayMe API, the status page or the mail server answered, and said no."""


class DumpFailed(PaymeOpsError):
    """pg_dump, pg_dumpall or pg_restore ended with an error."""


class AlreadyExists(PaymeOpsError):
    """The target exists and is never overwritten."""


class NotApproved(PaymeOpsError):
    """A dangerous step without the approval it needs."""


class UnexpectedSchema(PaymeOpsError):
    """A table, column, index or constraint is not what the step expects."""


class GateClosed(PaymeOpsError):
    """A gate of the migration failed, or could not be measured."""


class Aborted(PaymeOpsError):
    """A person ended the work; what was committed stays, and it can be taken up again."""


class NotFound(PaymeOpsError):
    """The thing named does not exist."""


class IntegrityError(PaymeOpsError):
    """Bytes or facts differ from what was recorded."""


class HashMismatch(IntegrityError):
    """Length or SHA-256 differs."""


class Untrusted(IntegrityError):
    """No signature, or one by a key that is not trusted."""


class ManifestInvalid(IntegrityError):
    """The document is not a manifest this version can read."""


class RecordInvalid(IntegrityError):
    """The document is not a record this version can read."""


class TruthMismatch(IntegrityError):
    """A restored database differs from the truth in the manifest."""


class Refuted(IntegrityError):
    """A restore test found that the backup is not what it should be."""


def require_reason(what: str, reason: str, why: str) -> None:
    """What a person begins by hand has a reason: `why` says what for. Raises SettingsError."""
    if not reason.strip():
        raise SettingsError(
            f"{what} wants a reason", expected=why, found="none", remedy="trigger it again with a reason"
        )
