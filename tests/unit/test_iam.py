"""Decisions on policies, as AWS's own logic has them; and what docs/iam forbids whatever else allows."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandbox import guard, iam
from sandbox.iam import Call, decide, matches, parse

VALUES = {
    "BUCKET": "home",
    "COPY_BUCKET": "copies",
    "REGION": "af-south-1",
    "COPY_REGION": "eu-west-1",
    "ACCOUNT": "123456789012",
    "PROFILE": "production",
    "KMS_KEY": "arn:aws:kms:af-south-1:123456789012:key/home",
    "COPY_KMS_KEY": "arn:aws:kms:eu-west-1:123456789012:key/copies",
}
OBJECT = "arn:aws:s3:::home/postgres/payme/daily/x/archive.dump.age"
EVERYTHING: dict[str, Any] = {"Effect": "Allow", "Action": "*", "Resource": "*"}
TEXT = st.text("ab/*?.:", max_size=12)


def rules(*statements: dict[str, Any]) -> list[iam.Rule]:
    return parse("test", json.dumps({"Version": "2012-10-17", "Statement": list(statements)}), VALUES)


def document(name: str) -> list[iam.Rule]:
    return parse(name, (guard.POLICIES / f"{name}.json").read_text(), VALUES)


def is_allowed(action: str, resource: str, *statements: dict[str, Any], **context: str) -> bool:
    return decide(rules(*statements), Call(action, resource, context)).allowed


# --- the decision ---------------------------------------------------------------------------------------------------


def test_without_an_allow_it_is_no() -> None:
    assert decide([], Call("s3:GetObject", OBJECT)) == iam.Decision(False, ())
    other = {"Effect": "Allow", "Action": "s3:PutObject", "Resource": "*"}
    assert not is_allowed("s3:GetObject", OBJECT, other)
    assert is_allowed("s3:PutObject", OBJECT, other)


@given(st.permutations([0, 1, 2]))
def test_a_deny_wins_wherever_it_stands(order: list[int]) -> None:
    deny: dict[str, Any] = {"Sid": "no", "Effect": "Deny", "Action": "s3:Delete*", "Resource": "arn:aws:s3:::home/*"}
    allow: dict[str, Any] = {
        "Effect": "Allow",
        "Action": ["s3:DeleteObject", "s3:GetObject"],
        "Resource": ["arn:aws:s3:::home/*"],
    }
    statements = [[EVERYTHING, deny, allow][number] for number in order]
    decision = decide(rules(*statements), Call("s3:DeleteObject", OBJECT))
    assert not decision.allowed
    assert [rule.sid for rule in decision.rules] == ["no"]
    assert is_allowed("s3:GetObject", OBJECT, *statements)
    assert is_allowed("s3:DeleteObject", "arn:aws:s3:::other/key", *statements)


def test_the_case_of_an_action_does_not_matter_that_of_a_resource_does() -> None:
    allow = {"Effect": "Allow", "Action": "S3:getobject", "Resource": "arn:aws:s3:::home/Key"}
    assert is_allowed("s3:GetObject", "arn:aws:s3:::home/Key", allow)
    assert not is_allowed("s3:GetObject", "arn:aws:s3:::home/key", allow)


@pytest.mark.parametrize(
    ("pattern", "text", "fits"),
    [
        ("a*c", "abbc", True),
        ("a*c", "a/b\nc", True),
        ("a*c", "abcd", False),
        ("a?c", "abc", True),
        ("a?c", "ac", False),
        ("a.c", "abc", False),
        ("secret:name-??????", "secret:name-Ab3Xy9", True),
        ("secret:name-??????", "secret:name-other-Ab3Xy9", False),
        ("home/*", "home", False),
        ("", "a", False),
    ],
)
def test_wildcards(pattern: str, text: str, fits: bool) -> None:
    assert matches(pattern, text) is fits


@given(TEXT, TEXT)
def test_a_star_between_two_texts_fits_anything_between_them(before: str, after: str) -> None:
    plain = before.replace("*", "x").replace("?", "x")
    assert matches(f"{plain}*", plain + after)
    assert matches(f"*{plain}", after + plain)
    assert matches("?" * len(after), after)
    assert not matches("?" * (len(after) + 1), after)


# --- conditions -----------------------------------------------------------------------------------------------------


THROUGH_S3 = {"kms:ViaService": "s3.af-south-1.amazonaws.com"}


def conditional(**operators: dict[str, Any]) -> dict[str, Any]:
    return {"Effect": "Allow", "Action": "kms:Decrypt", "Resource": "*", "Condition": operators}


@pytest.mark.parametrize(
    ("operators", "context", "allowed"),
    [
        ({"StringEquals": THROUGH_S3}, THROUGH_S3, True),
        ({"StringEquals": THROUGH_S3}, {}, False),  # asked directly, not through S3
        ({"StringEquals": {"kms:ViaService": "s3.*"}}, THROUGH_S3, False),  # a star is a star here
        ({"StringLike": {"kms:ViaService": "s3.*"}}, THROUGH_S3, True),
        ({"StringEquals": {"kms:ViaService": ["other", *THROUGH_S3.values()]}}, THROUGH_S3, True),  # any value
        ({"StringEquals": THROUGH_S3, "StringLike": {"other": "*"}}, THROUGH_S3, False),  # every key
    ],
)
def test_conditions(operators: dict[str, Any], context: dict[str, str], allowed: bool) -> None:
    assert is_allowed("kms:Decrypt", "key", conditional(**operators), **context) is allowed


def test_a_deny_whose_condition_does_not_hold_denies_nothing() -> None:
    deny = {**conditional(StringEquals=THROUGH_S3), "Effect": "Deny"}
    assert is_allowed("kms:Decrypt", "key", EVERYTHING, deny)
    assert not is_allowed("kms:Decrypt", "key", EVERYTHING, deny, **THROUGH_S3)


@pytest.mark.parametrize("name", ["payme_s3_write_kms", "payme_s3_restore_kms", "payme_s3_prune_kms"])
@pytest.mark.parametrize(
    ("service", "about", "key", "allowed"),
    [
        ("s3.af-south-1.amazonaws.com", OBJECT, VALUES["KMS_KEY"], True),
        ("s3.af-south-1.amazonaws.com", "arn:aws:s3:::home", VALUES["KMS_KEY"], True),  # an S3 Bucket Key
        ("s3.eu-west-1.amazonaws.com", "arn:aws:s3:::copies/a", VALUES["COPY_KMS_KEY"], True),
        ("s3.af-south-1.amazonaws.com", "arn:aws:s3:::another/a", VALUES["KMS_KEY"], False),
        ("s3.af-south-1.amazonaws.com", OBJECT, VALUES["KMS_KEY"] + "-of-another", False),
        ("rds.af-south-1.amazonaws.com", OBJECT, VALUES["KMS_KEY"], False),
        (None, OBJECT, VALUES["KMS_KEY"], False),
    ],
)
def test_kms_keys_open_what_is_in_the_buckets_and_only_through_s3(
    name: str, service: str | None, about: str, key: str, allowed: bool
) -> None:
    context = {"kms:EncryptionContext:aws:s3:arn": about} | ({"kms:ViaService": service} if service else {})
    assert decide(document(name), Call("kms:Decrypt", key, context)).allowed is allowed


# --- the documents --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["payme_s3_write", "payme_s3_restore", "payme_s3_prune"])
@pytest.mark.parametrize(
    "action",
    [
        *("s3:DeleteObjectVersion", "s3:BypassGovernanceRetention", "s3:PutLifecycleConfiguration"),
        *("s3:PutBucketVersioning", "s3:PutBucketObjectLockConfiguration", "s3:PutBucketPolicy"),
        *("s3:PutObjectRetention", "s3:PutObjectLegalHold", "s3:DeleteBucket", "s3:PutEncryptionConfiguration"),
    ],
)
def test_none_may_lose_backups_whatever_else_it_is_given(name: str, action: str) -> None:
    given_more = [*document(name), *rules(EVERYTHING)]
    for resource in ("arn:aws:s3:::home", OBJECT, "arn:aws:s3:::copies", "arn:aws:s3:::copies/postgres/a"):
        assert not decide(given_more, Call(action, resource)).allowed
    assert decide(given_more, Call("s3:GetObject", OBJECT)).allowed


@pytest.mark.parametrize("path", sorted(guard.POLICIES.glob("*.json")), ids=lambda path: path.stem)
def test_every_document_is_understood_names_its_statements_and_allows_no_action_as_a_whole(path: Any) -> None:
    found = document(path.stem)
    assert all(rule.sid for rule in found)
    assert [rule.action for rule in found if rule.allows and "*" in rule.action] == []
    # IAM takes 6,144 characters; names that are filled in are longer.
    assert len("".join(path.read_text().split())) <= 3000


@pytest.mark.parametrize(
    "wrong",
    [
        {"NotAction": "s3:*"},
        {"Principal": "*"},
        {"Condition": {"IpAddress": {"aws:SourceIp": "10.0.0.0/8"}}},
        {"Resource": "arn:aws:s3:::${NOBODY}"},
    ],
)
def test_what_is_not_understood_is_refused_not_passed_over(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"test|NOBODY"):
        rules({**EVERYTHING, **wrong})
