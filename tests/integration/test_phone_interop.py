"""The Node code of docs/phone-encryption.md, as it stands there, and ours: each reads what the other writes."""

import json
import os
import random
import re
import secrets
import shutil
import subprocess
from base64 import urlsafe_b64encode
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from payme_ops.foundation.errors import KeyRejected
from payme_ops.migration import envelope
from payme_ops.migration.envelope import Keys
from payme_ops.migration.names import PHONE_NUMBER

PAGE = Path(__file__).resolve().parents[2] / "docs" / "phone-encryption.md"
SECRET = secrets.token_hex(32)
# Calls what it is told to call, one after the other; keys are loaded for each group of calls.
DRIVER = """
import { readFileSync } from 'node:fs';
import { inspect } from 'node:util';
import * as phone from './phone.mjs';

const attempt = (work) => {
  try {
    const value = work();
    return { value: Buffer.isBuffer(value) ? value.toString('hex') : value };
  } catch (error) {
    return { error: inspect(error, { depth: 9 }) };
  }
};
const groups = JSON.parse(readFileSync(0, 'utf8'));
const answers = groups.map(({ environment, keyId, calls }) => {
  let keys;
  const loaded = attempt(() => inspect((keys = phone.loadKeys(environment, keyId)), { depth: 9, showHidden: true }));
  return [loaded, ...calls.map(([name, ...given]) => attempt(() => phone[name](keys, ...given)))];
});
process.stdout.write(JSON.stringify(answers));
"""

Answer = dict[str, Any]  # value, or error
Node = Callable[..., list[list[Answer]]]


def block(language: str) -> str:
    """The page's only code block of that language."""
    (found,) = re.findall(rf"^```{language}\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    return str(found)


@pytest.fixture
def node(tmp_path: Path) -> Node:
    """Runs calls in one Node process; the answers, the first of which is how the keys look when they are logged."""
    program = shutil.which("node")
    if program is None:
        missing = "node is not installed; install nodejs"
        if os.environ.get("CI") == "true":
            pytest.fail(missing)
        pytest.skip(missing)
    (tmp_path / "phone.mjs").write_text(block("js"))
    (tmp_path / "driver.mjs").write_text(DRIVER)

    def run(*groups: dict[str, Any]) -> Any:
        ended = subprocess.run(
            [program, tmp_path / "driver.mjs"], input=json.dumps(groups).encode(), capture_output=True, timeout=60
        )
        assert ended.returncode == 0, ended.stderr.decode()
        return json.loads(ended.stdout)

    return run


def group(*calls: list[Any], secret: str = SECRET, key_id: str = "k1", **more: str) -> dict[str, Any]:
    return {"environment": {"ENCRYPTION_KEY": secret, **more}, "keyId": key_id, "calls": calls}


def keys_of(secret: str = SECRET, key_id: str = "k1") -> Keys:
    return envelope.load_keys({"ENCRYPTION_KEY": secret}, key_id=key_id, names=PHONE_NUMBER)


def spellings(rest: str) -> list[str]:
    """Ways to write the Kenyan number of nine digits."""
    first, second, third = rest[:3], rest[3:6], rest[6:]
    return [
        f"+254{rest}",
        f"0{rest}",
        f"254{rest}",
        f"00254{rest}",
        f"0{first} {second} {third}",
        f"+254 ({first}) {second}-{third}",
        f"00254.{first}.{second}.{third}",
        f"\t(0{first}) {second}{third} ",
    ]


def thousand_values() -> list[str | None]:
    """What a column of phone numbers may hold, and what it should not hold and does."""
    dice = random.Random(4)  # noqa: S311  # the same in every run
    alphabets = [
        "0123456789",
        "+-(). \t0123456789",
        "abc\u00e9\u00df e\u0301\u0327\u200d",  # combining
        "\U0001f4de\U0001f1f0\U0001f1ea\U00010348\U0010ffff",  # astral
        "\u0660\u0669\u0627\u05d0\u202e\u200f\u06f1",  # right to left
        "\0\n\r\u2028\u00a0\ufeff\ufffd\"'\\`$",
    ]
    long = ["7" * 160, "\U0001f4de" * 160, "\u0301" * 160]
    values: list[str | None] = [None, "", " ", "\ufeff", "\0", "00", "0", "+", *long]
    while len(values) < 500:
        values += spellings(f"{dice.choice('17')}{dice.randrange(10**8):08}")
    while len(values) < 999:
        values.append("".join(dice.choices(dice.choice(alphabets), k=dice.randrange(1, 161))))
    return [*values, None][:1000]


def test_each_opens_what_the_other_wrote_and_both_find_the_same_index(node: Node) -> None:
    keys, values = keys_of(), thousand_values()
    rows = dict(enumerate(values, 1)) | {2**53 - 1: "+254712345678"}
    ours = {
        key: text if text is None else envelope.encrypt(keys, PHONE_NUMBER.associated_data(key), text)
        for key, text in rows.items()
    }
    count = len(rows)
    ((_, *answers),) = node(
        group(
            *(["encrypt", key, text] for key, text in rows.items()),
            *(["decrypt", key, ours[key]] for key in rows),
            *(["blindIndex", text] for text in rows.values()),
        )
    )
    assert [one for one in answers if "error" in one] == []
    said = [one["value"] for one in answers]
    theirs, opened, indexes = (dict(zip(rows, said[at : at + count], strict=True)) for at in range(0, 3 * count, count))
    assert opened == rows
    assert {
        key: stored if stored is None else envelope.decrypt(keys, PHONE_NUMBER.associated_data(key), stored)
        for key, stored in theirs.items()
    } == rows
    assert {
        key: text if text is None else envelope.blind_index(keys, text).hex() for key, text in rows.items()
    } == indexes
    assert not set(theirs.values()) & set(ours.values()) - {None}, "nonces are never the same"
    several = {tuple(indexes[key] for key in range(start, start + 8)) for start in range(12, 480, 8)}
    assert all(len(set(one)) == 1 for one in several), "every spelling has one index"


def test_ids_of_any_size_are_written_alike(node: Node) -> None:
    """A bigint of PostgreSQL comes as a text from most drivers; as a number only while it is exact."""
    keys, key = keys_of(), 2**63 - 1
    stored = envelope.encrypt(keys, PHONE_NUMBER.associated_data(key), "x")
    wrong = [None, "new", "", "01", " 1", "1 ", "1e3", 1.5, 2**53, 1e21]
    ((_, good, *bad),) = node(group(["decrypt", str(key), stored], *(["encrypt", one, "x"] for one in wrong)))
    assert good == {"value": "x"}
    assert ["needs the id of its user" in one.get("error", "") for one in bad] == [True] * len(wrong)


def test_the_known_answer_of_the_page(node: Node) -> None:
    answer = json.loads(block("json"))
    ((_, opened, index),) = node(
        group(
            ["decrypt", answer["user_id"], answer["phone_number_encrypted"]],
            ["blindIndex", answer["phone_number"]],
            secret=answer["ENCRYPTION_KEY"],
            key_id=answer["key_id"],
        )
    )
    assert opened == {"value": answer["phone_number"]}
    assert index == {"value": answer["phone_number_bidx"]}


def test_node_refuses_what_we_refuse_and_shows_neither_number_nor_key(node: Node) -> None:
    keys, row, number = keys_of(), PHONE_NUMBER.associated_data(1), "+254712345678"
    stored = envelope.encrypt(keys, row, number)
    of_another = envelope.encrypt(keys_of(secrets.token_hex(32)), row, number)
    sealed = bytes(12) + keys.aead.encrypt(bytes(12), b"712345678\xff", row)
    no_text = "v1:k1:" + urlsafe_b64encode(sealed).decode().rstrip("=")
    spare_bits = stored[:-1] + chr(ord(stored[-1]) + 1)  # of 41 bytes: the last character's lowest two
    malformed = [number, "", f"{stored}=", f"{stored}\n", f" {stored}", "v1:k1:AAAA", stored[:-4], spare_bits]
    changed = [stored[:at] + ("B" if stored[at] == "A" else "A") + stored[at + 1 :] for at in range(len(stored))]
    refused: list[list[Any]] = [
        ["decrypt", 2, stored],
        ["decrypt", 1, of_another],
        ["decrypt", 1, envelope.encrypt(keys_of(key_id="k2"), row, number)],
        ["decrypt", 1, no_text],
        *(["decrypt", 1, value] for value in malformed + changed),
        *(["encrypt", 1, value] for value in (f"{number}\ud83d", 712345678, {"phone": number})),
        ["blindIndex", f"{number}\ud83d"],
    ]
    ((_, *answers),) = node(group(*refused))
    assert [call for call, one in zip(refused, answers, strict=True) if "error" not in one] == []
    shown = json.dumps(answers)
    assert [one for one in ("712345678", SECRET[:16]) if one in shown] == []


def test_node_refuses_the_keys_that_we_refuse(node: Node) -> None:
    good = {"ENCRYPTION_KEY": SECRET, "JWT_SECRET": secrets.token_hex(32), "EMPTY": ""}
    environments: list[dict[str, str]] = [
        good,
        {},
        *(
            {"ENCRYPTION_KEY": key}
            for key in (
                "",
                SECRET[:-1],
                SECRET + "0",
                SECRET + "\n",
                SECRET[:-1] + "F",
                SECRET[:40] + "g" + SECRET[41:],
                "0" * 64,
                "0" * 62 + "12",
                "deadbeef" * 8,
                SECRET[:32] * 2,
            )
        ),
        *({"ENCRYPTION_KEY": SECRET, "JWT_SECRET": same} for same in (SECRET, SECRET.upper(), f"{SECRET}\n")),
    ]
    groups = [{"environment": environment, "keyId": "k1", "calls": []} for environment in environments]
    taken, *answers = [loaded for (loaded,) in node(*groups)]
    assert "error" not in taken
    assert ["ENCRYPTION_KEY" in one.get("error", "") for one in answers] == [True] * (len(environments) - 1)
    for environment in environments[1:]:
        with pytest.raises(KeyRejected):
            envelope.load_keys(environment, key_id="k1", names=PHONE_NUMBER)
    shown = json.dumps([taken, *answers])
    as_buffers = [key[:8].hex(" ") for key in (bytes.fromhex(SECRET), keys_of().index_key)]
    assert [one for one in (SECRET[:16], SECRET[:16].upper(), *as_buffers) if one in shown] == []
