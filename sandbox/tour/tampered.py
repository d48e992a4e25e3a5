"""Step 2: somebody who holds the backup worker's keys changes one cell of a stored backup, and signs it again.

Signature, length and SHA-256 are right then. The restore test still finds it: the manifest's truth was taken in the
dump's own snapshot, and whoever changes that as well has to know every hash before the table was read.
"""

import json
from collections.abc import Callable
from datetime import timedelta

from rich.console import Console

from payme_ops.backup import catalogue, restore, retain
from payme_ops.backup.catalogue import Entry, State
from payme_ops.backup.manifest import Manifest, Tier
from payme_ops.backup.retain import Action
from payme_ops.cli import doors
from payme_ops.cli.tables import entries_table, proof_table
from payme_ops.foundation import settings, signing
from payme_ops.foundation.clock import utc_now
from payme_ops.foundation.evidence import Verdict, plain
from sandbox import forgery, postgres
from sandbox.http import call
from sandbox.supervisor import SandboxError
from sandbox.tour import ground
from sandbox.tour.ground import Desk

CHANGE = "UPDATE merchants SET commission = 0 WHERE id = 1"
_TEST = "backup_restore_test"


def walk(console: Console) -> None:
    """Raises SandboxError when anything does not turn out as docs/tour.md says."""
    with ground.desk(console) as desk:
        say = _teller(console)
        say("A fresh backup, by backup_daily.")
        _expect(desk.run("backup_daily", {"reason": "tour, step 2"}), "success", "backup_daily")
        done = _newest()
        console.print(proof_table(done))
        say(f"Somebody with the backup worker's keys restores it at home, runs\n     {CHANGE}\n   and puts it back.")
        forged = _forge(done)
        console.print(f"   archive before  {done.archive.sha256[:32]}…")
        console.print(f"   archive now     {forged.archive.sha256[:32]}…, in a manifest that is rightly signed")
        say(f"The restore test of that backup, by {_TEST}: it has to fail.")
        run, state = desk.run(_TEST, {"manifest": forged.key, "reason": "tour, step 2"})
        _expect((run, state), "failed", _TEST)
        refuted = _entry(forged)
        _show(console, refuted)
        say("Slack heard of it once, with the runbook:")
        console.print(f"   {_message(desk, run)}", markup=False)
        say("It counts for nothing from now on; a fresh one was taken in its place.")
        console.print(entries_table("Dailies", list(catalogue.entries(_where(), tiers=[Tier.DAILY]))))
        say("Retention, asked what it will do in 40 days: a refuted backup waits for a person to close it.")
        console.print(f"   {_fate(forged)}", markup=False, soft_wrap=True)


def _teller(console: Console) -> Callable[[str], None]:
    numbers = iter(range(1, 10))
    return lambda text: console.print(f"\n[bold]{next(numbers)}. {text}[/bold]", soft_wrap=True)


def _where() -> catalogue.Catalogue:
    return doors.catalogue("payme_s3_restore")


def _newest() -> Manifest:
    found = catalogue.newest(_where(), Tier.DAILY)
    if found is None:
        raise SandboxError("there is no daily backup that counts")
    return found


def _forge(done: Manifest) -> Manifest:
    backup = settings.load().backup
    return forgery.change_content(
        doors.stores("payme_s3_write", backup).home,
        done,
        lambda connection: connection.execute(CHANGE),
        identity=restore.load_identity(backup.identity_file),
        signing_key=signing.load_private_key(backup.signing_key_file),
        bin_dir=postgres.wheel_bin_dir(),
    )


def _expect(ended: tuple[str, str], state: str, dag: str) -> None:
    if ended[1] != state:
        raise SandboxError(f"{dag} ended otherwise", expected=state, found=f"{ended[1]}, run {ended[0]}")


def _entry(forged: Manifest) -> Entry:
    found = catalogue.entry(_where(), forged.tier, forged.key)
    if found.state is not State.REFUTED or found.verification is None:
        raise SandboxError("the changed backup was not refuted", expected=State.REFUTED, found=found.state)
    return found


def _fate(forged: Manifest) -> str:
    later = utc_now() + timedelta(days=40)
    found = retain.survey(doors.catalogue("payme_s3_prune"), later)
    made = retain.plan(found, later, proof_days=60)  # as if proven every week until then
    row = next(row for row in made.rows if row.backup == forged.prefix)
    if row.action is not Action.REFUSED:
        raise SandboxError("retention would not keep the refuted backup", expected=Action.REFUSED, found=row.action)
    return f"{row.backup}: {row.action}, {row.rule}; {row.evidence}"


def _show(console: Console, refuted: Entry) -> None:
    if refuted.verification is not None:
        wrong = [item for item in refuted.verification.evidence if item.verdict is not Verdict.PASS]
        console.print(f"   {refuted.key} is {refuted.state}", soft_wrap=True)
        for item in wrong:
            console.print(f"   {item.item}: {plain(item.measured)}", style="red", markup=False, soft_wrap=True)


def _message(desk: Desk, run: str) -> str:
    told = [one for one in call("GET", f"{desk.world.url('slack')}/messages.json")[1] if run in json.dumps(one)]
    if len(told) != 1:
        raise SandboxError("Slack did not hear of it once", expected="1 message", found=str(len(told)))
    return "\n   ".join(block["text"]["text"] for block in told[0]["blocks"] if "text" in block)
