"""A backup whose bytes can be read: the operator asks and defers, the trigger waits."""

import asyncio
import json
from collections.abc import Callable, Iterator
from datetime import timedelta

import pytest

from payme_ops.backup import archive, catalogue
from payme_ops.backup.archive import Retrieval
from payme_ops.backup.manifest import Manifest, Tier
from payme_ops.orchestration import doors
from payme_ops.orchestration.retrieval import ReadableOperator, ReadableTrigger
from tests.support.installation import Installation
from tests.support.retrievals import slow_retrievals


@pytest.fixture
def slowly(installation: Installation, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], None]]:
    monkeypatch.setattr(doors, "catalogue", lambda _conn_id: installation.catalogue)
    with slow_retrievals(installation.site.world.url("s3")) as end:
        yield end


def archived(installation: Installation) -> Manifest:
    """A backup whose archive object lies in Glacier."""
    done = installation.back_up()
    key, size = done.archive.key, done.archive.size_bytes
    installation.store.copy(installation.store, key, key, size_bytes=size, StorageClass="GLACIER")
    return done


@pytest.mark.usefixtures("slowly")
def test_what_can_be_read_needs_no_wait(installation: Installation) -> None:
    done = installation.back_up()
    assert ReadableOperator(task_id="readable", backup="latest").execute({}) == done.key


def test_an_archive_is_asked_for_and_waited_for(installation: Installation, slowly: Callable[[], None]) -> None:
    from airflow.sdk.exceptions import TaskDeferred

    done = archived(installation)
    operator = ReadableOperator(task_id="readable", backup="latest")
    with pytest.raises(TaskDeferred) as deferred:
        operator.execute({})
    assert archive.state(installation.store, done.archive.key) is Retrieval.PENDING
    assert deferred.value.timeout == timedelta(hours=24)
    # A try that comes too early, as after a kill, waits again.
    with pytest.raises(TaskDeferred):
        operator.execute({})
    newer = installation.back_up()
    assert catalogue.find(installation.catalogue, "latest").key == newer.key
    slowly()
    again = deferred.value.kwargs or {}
    assert getattr(operator, deferred.value.method_name)({}, event={}, **again) == done.key


def test_the_trigger_looks_until_it_is_there(installation: Installation, slowly: Callable[[], None]) -> None:
    done = archived(installation)
    archive.request(installation.store, done.archive.key)
    path, arguments = ReadableTrigger(Tier.DAILY, done.archive.key).serialize()
    assert path == f"{ReadableTrigger.__module__}.{ReadableTrigger.__name__}"
    assert arguments["first_seconds"] >= 10
    assert json.loads(json.dumps(arguments)) == arguments
    trigger = ReadableTrigger(**{**arguments, "first_seconds": 0.0, "every_seconds": 0.01})
    looks = 0

    async def first() -> dict[str, str]:
        async for event in trigger.run():
            return dict(event.payload)
        raise AssertionError("it ended without an event")

    look = trigger._readable

    def counted() -> bool:
        nonlocal looks
        looks += 1
        if looks == 3:
            slowly()
        return look()

    trigger._readable = counted  # type: ignore[method-assign]
    assert asyncio.run(asyncio.wait_for(first(), 30)) == {"key": done.archive.key}
    assert looks == 3


def test_the_trigger_outlives_a_store_that_is_away(monkeypatch: pytest.MonkeyPatch) -> None:
    from payme_ops.foundation.errors import StoreUnavailable

    def away(_conn_id: str) -> None:
        raise StoreUnavailable("look at it", found="HTTP 503")

    monkeypatch.setattr(doors, "catalogue", away)
    assert ReadableTrigger(Tier.DAILY, "postgres/payme/x")._readable() is False
