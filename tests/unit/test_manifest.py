"""The manifest: what is written is what is read, and what this version does not know it refuses."""

import json
from datetime import UTC, datetime
from typing import Any

import jsonschema  # type: ignore[import-untyped]
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from payme_ops.backup import manifest
from payme_ops.backup.manifest import Manifest, Tier
from payme_ops.foundation.errors import ManifestInvalid
from payme_ops.foundation.evidence import canonical
from tests.support import manifest_schema

INSTANTS = st.datetimes(datetime(2000, 1, 1), datetime(2200, 1, 1), timezones=st.just(UTC))  # noqa: DTZ001
st.register_type_strategy(datetime, INSTANTS)
MANIFESTS = st.builds(Manifest)
SOME: dict[str, Any] = json.loads(
    """{
    "format": "payme-ops/backup", "version": 1, "database": "payme", "tier": "daily",
    "prefix": "postgres/payme/daily/20260128T020000EAT/", "run": "backup_daily/scheduled", "fencing_token": 7,
    "software": "payme-ops 0.1.0", "started_at": "2026-01-27T23:00:00Z", "snapshot_at": "2026-01-27T23:00:01Z",
    "server": {"version": "15.18", "in_recovery": false, "size_bytes": 1, "owner": "payme_owner", "encoding": "UTF8",
               "collate": "C", "ctype": "C", "locale_provider": "c", "locale": "",
               "system_identifier": null},
    "dump": {"tool": "pg_dump 15.18", "format": "custom", "compression": "zstd:1", "compression_place": "outside",
             "listing": {"TABLE": 1}},
    "archive": {"key": "a", "size_bytes": 1, "sha256": "00"}, "globals": {"key": "b", "size_bytes": 1, "sha256": "00"},
    "sealing": {"format": "age-encryption.org/v1", "recipients": {"recovery": "age1", "drill": "age1"}},
    "truth": {"hash_algorithm": "hash_record_extended/1", "relations": [
                 {"schema_name": "public", "name": "users", "kind": "table", "rows": 3,
                  "content_hash": "9", "note": ""},
                 {"schema_name": "public", "name": "days", "kind": "materialised view", "rows": null,
                  "content_hash": null, "note": "definition only"}],
              "sequences": [], "extensions": [], "roles": [], "grants": [],
              "large_objects": {"count": 0, "size_bytes": 0, "content_hash": "0"},
              "definitions": [{"kind": "index", "name": "public.i", "sha256": "0f"}],
              "definitions_form": 1},
    "milliseconds": {"dump": 5}, "copied_from": null, "read_back": {"at": "2026-01-27T23:00:05Z", "milliseconds": 1}
    }"""
)


def paths(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Where the objects of a JSON document are."""
    found = [path] if isinstance(value, dict) else []
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return found + [deeper for key, below in inner for deeper in paths(below, (*path, key))]


# Everywhere but where names are data.
FIXED = [
    path for path in paths(SOME) if path not in [("dump", "listing"), ("sealing", "recipients"), ("milliseconds",)]
]

OPTIONAL = ("note", "copied_from", "system_identifier", "definitions", "definitions_form")


def at(document: Any, path: tuple[Any, ...]) -> Any:
    for key in path:
        document = document[key]
    return document


def copied() -> dict[str, Any]:
    result: dict[str, Any] = json.loads(json.dumps(SOME))
    return result


@given(MANIFESTS)
@settings(max_examples=40, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large], deadline=None)
def test_round_trip(made: Manifest) -> None:
    document = json.loads(canonical(manifest.document(made)))
    assert manifest.parse(document) == made
    jsonschema.validate(document, json.loads(manifest_schema.generated()))


def test_round_trip_of_a_real_one() -> None:
    parsed = manifest.parse(SOME)
    assert manifest.document(parsed) == SOME
    assert parsed.key == "postgres/payme/daily/20260128T020000EAT/manifest.json"
    assert parsed.truth.rows == 3
    assert parsed.server.major == 15
    assert parsed.truth.relations[0].qualified == "public.users"


def test_prefix_sorts_by_time_in_eat() -> None:
    assert manifest.backup_prefix("payme", Tier.DAILY, parsed_at := datetime(2026, 1, 27, 23, tzinfo=UTC)) == (
        "postgres/payme/daily/20260128T020000EAT/"
    )
    assert manifest.backup_prefix("payme", Tier.WEEKLY, parsed_at).startswith("postgres/payme/weekly/")


@pytest.mark.parametrize("version", [2, 3, 10**9])
def test_a_newer_version_is_refused_naming_both(version: int) -> None:
    with pytest.raises(ManifestInvalid) as caught:
        manifest.parse({**SOME, "version": version, "new_field": True})
    assert "version 1 or older" in str(caught.value)
    assert f"version {version}" in str(caught.value)
    assert caught.value.remedy


@pytest.mark.parametrize("path", FIXED, ids=lambda path: ".".join(map(str, path)) or "top")
def test_an_unknown_field_is_refused_anywhere_and_named(path: tuple[Any, ...]) -> None:
    document = copied()
    at(document, path)["surprise"] = 1
    with pytest.raises(ManifestInvalid, match="surprise"):
        manifest.parse(document)


@pytest.mark.parametrize("path", FIXED, ids=lambda path: ".".join(map(str, path)) or "top")
def test_a_missing_field_is_refused_anywhere_and_named(path: tuple[Any, ...]) -> None:
    for field in at(SOME, path):
        if field in (*OPTIONAL, "format"):  # have defaults; names another kind of document
            continue
        document = copied()
        del at(document, path)[field]
        with pytest.raises(ManifestInvalid, match=field):
            manifest.parse(document)


@pytest.mark.parametrize(
    "document",
    [
        None,
        [],
        "manifest",
        {},
        {**SOME, "format": "payme-ops/record"},
        {**SOME, "version": 0},
        {**SOME, "version": "1"},
        {**SOME, "tier": "hourly"},
        {**SOME, "fencing_token": "7"},
        {**SOME, "fencing_token": 7.5},
        {**SOME, "started_at": "yesterday"},
        {**SOME, "started_at": 1769554800},
    ],
)
def test_anything_else_is_no_manifest(document: Any) -> None:
    with pytest.raises(ManifestInvalid):
        manifest.parse(document)


def test_the_schema_in_docs_is_that_of_the_models() -> None:
    assert manifest_schema.FILE.read_text() == manifest_schema.generated(), (
        "a field was changed: write docs/manifest.schema.json anew (python -m tests.support.manifest_schema) and ask"
        " whether older manifests can still be read, or the version must grow"
    )


def test_the_schema_refuses_what_parse_refuses() -> None:
    schema = json.loads(manifest_schema.FILE.read_text())
    jsonschema.validate(SOME, schema)
    for bad in ({**SOME, "version": 2}, {**SOME, "surprise": 1}, {**SOME, "tier": "hourly"}):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(bad, schema)
