"""Records that lie beside nothing: each is kept once, in order, and counts only with its signature."""

from dataclasses import replace
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from typer.testing import CliRunner

from payme_ops.backup import verification
from payme_ops.cli import app, doors
from payme_ops.foundation import evidence, record, settings, signing
from payme_ops.foundation.clock import utc_now
from payme_ops.foundation.errors import NotFound, Untrusted
from payme_ops.foundation.evidence import Evidence, Verdict
from payme_ops.foundation.record import Record
from tests.support.installation import Installation
from tests.support.proxy import Proxy

KEY = Ed25519PrivateKey.generate()
TRUSTED = [signing.public_key(KEY)]
NOW = utc_now()
FIRST = Record(kind="drill", subject="a <b>", run="r/1", actor="a", verdict="DONE", started=NOW, ended=NOW, facts={})


def test_two_of_the_same_second_are_kept_in_their_order(installation: Installation) -> None:
    bucket = installation.store
    assert record.newest(bucket, "drill", TRUSTED, "KEYS") is None
    second = record.follow(replace(FIRST, run="r/2"), FIRST)
    keys = [record.keep(bucket, one, KEY) for one in (FIRST, second)]
    assert keys == sorted(set(keys))
    assert record.newest(bucket, "drill", TRUSTED, "KEYS") == second
    assert "a &lt;b&gt;" in bucket.get(keys[0].replace(".json", ".html")).decode()


def test_an_answer_that_was_lost_makes_no_second_one(installation: Installation, proxy: Proxy) -> None:
    proxy.lose_answer("PUT", ".json", times=1)
    record.keep(doors.catalogue("payme_s3_restore").stores.home, replace(FIRST, kind="release"), KEY)
    assert len([key for key in installation.store.keys("records/release/") if key.endswith(".json")]) == 1


def test_one_that_somebody_else_signed_counts_for_nothing(installation: Installation) -> None:
    record.keep(installation.store, FIRST, Ed25519PrivateKey.generate())
    with pytest.raises(Untrusted):
        record.newest(installation.store, "drill", TRUSTED, "KEYS")


def test_on_a_shell_a_kept_record_verifies_and_one_flipped_byte_is_named(
    installation: Installation, tmp_path: Path
) -> None:
    now = utc_now()
    item = Evidence("deploy", Verdict.PASS, {"n": 1}, "once", "a", now, now, "s", evidence.digest({"n": 1}))
    key = verification.signing_key(settings.load())
    kept = record.keep(installation.store, replace(FIRST, kind="release", evidence=(item,)), key)
    file = tmp_path / "record.json"
    file.write_bytes(installation.store.get(kept))
    good = CliRunner().invoke(app, ["record", "verify", str(file)])
    assert good.exit_code == 0, good.output
    assert "release a <b>: DONE" in good.output
    assert "deploy" in good.output
    file.write_bytes(file.read_bytes().replace(b'"once"', b'"onca"'))
    html = kept.replace(".json", ".html")
    page = tmp_path / "record.html"
    page.write_bytes(installation.store.get(html))
    assert CliRunner().invoke(app, ["record", "verify", str(page)]).output == good.output
    page.write_bytes(page.read_bytes().replace(b"once", b"onca", 1))
    bad = CliRunner().invoke(app, ["record", "verify", str(page)])
    assert isinstance(bad.exception, Untrusted)
    assert "the page was changed in item 1 (deploy)" in str(bad.exception)
    bad = CliRunner().invoke(app, ["record", "verify", str(file)])
    assert isinstance(bad.exception, Untrusted)
    assert r"changed in item 1 (deploy)" in str(bad.exception)
    missing = CliRunner().invoke(app, ["record", "verify", str(tmp_path / "none")])
    assert isinstance(missing.exception, NotFound)
