"""A person pauses, resumes or ends a backfill while it runs, with a reason that it tells."""

from collections.abc import Callable

import pytest

from payme_ops.foundation.errors import Aborted, SettingsError
from payme_ops.migration import control, throttle
from payme_ops.migration.control import PassDone, Word
from tests.support.backfills import BATCH, before_batch, beside, cursor, encrypt_all, small_batches
from tests.support.phones import Phones, expanded

USERS = 2_000
WHY = "payday, the shops are full"


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(throttle, "CANARY_SECONDS", 0.005)
    small_batches(monkeypatch)


def test_paused_it_waits_after_its_batch_and_resumed_it_goes_on(
    phones: Phones, monkeypatch: pytest.MonkeyPatch
) -> None:
    before_batch(monkeypatch, 4, lambda: control.pause(phones.desk, reason=WHY))
    with beside(expanded(phones)) as running:
        line = running.says(f"waits: pause by {phones.desk.run} since ")
        assert line.endswith(f": {WHY}")
        assert cursor(phones)[1] == 3 * BATCH
        status = control.status(phones.desk)
        assert status.said
        assert (status.said.word, status.said.reason, status.said.by) == (Word.PAUSE, WHY, phones.desk.run)
        assert status.passes == [PassDone("encrypt", 1, 1, 0, 3 * BATCH, 3 * BATCH, 0)]
        assert not running.future.done()
        control.resume(phones.desk, reason="the shops are closed")
        running.says("goes on")
        assert running.future.result().written == USERS
    assert control.status(phones.desk).passes == [PassDone("encrypt", 1, 1, 1, USERS, USERS, 0)]
    assert phones.decrypted() == phones.plaintexts()


def test_aborted_it_ends_and_stays_so_until_it_is_resumed(phones: Phones, monkeypatch: pytest.MonkeyPatch) -> None:
    before_batch(monkeypatch, 4, lambda: control.abort(phones.desk, reason=WHY))
    with pytest.raises(Aborted, match=WHY):
        encrypt_all(expanded(phones))
    assert cursor(phones) == (3 * BATCH, 3 * BATCH)
    with pytest.raises(Aborted, match=WHY):
        encrypt_all(phones)
    assert cursor(phones) == (3 * BATCH, 3 * BATCH)
    control.resume(phones.desk, reason="the shops are closed")
    assert encrypt_all(phones).written == USERS
    assert phones.decrypted() == phones.plaintexts()


def test_one_that_is_paused_can_be_aborted(phones: Phones) -> None:
    control.pause(expanded(phones).desk, reason=WHY)
    with beside(phones) as running:
        running.says("waits: pause")
        control.abort(phones.desk, reason="not this week any more")
        with pytest.raises(Aborted, match="not this week"):
            running.future.result()
    assert cursor(phones) == (0, 0)


@pytest.mark.parametrize("say", [control.pause, control.resume, control.abort])
def test_nothing_is_said_without_a_reason(phones: Phones, say: Callable[..., None]) -> None:
    with pytest.raises(SettingsError, match="the reason says nothing"):
        say(phones.desk, reason="  because  ")
    assert control.status(phones.desk) == control.Status(None, [])


def test_another_columns_backfill_is_not_meant(phones: Phones) -> None:
    with expanded(phones).admin() as connection:
        control.pause(phones.desk, reason=WHY)
        connection.execute("UPDATE payme_migration.control SET subject = 'public.users.email'")
    assert encrypt_all(phones).written == USERS
