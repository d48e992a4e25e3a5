"""Who may do what at the sandbox's S3, KMS and Secrets Manager: as AWS would say it, by the policies of docs/iam.

An access key that is the name of such a policy (`payme_s3_write`, `secrets_worker-default`) may do what it says; one of
an IAM user that somebody made here, what that user's policies say. Any other key may do everything. A call that is not
known here is refused to whom a policy binds. `GET /iam.json` tells what was used of each policy, and what was refused;
`DELETE` forgets it.

What a request needs leave for is from AWS's Service Authorization Reference and the API references of the services.
"""

import io
import json
import logging
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import parse_qs, unquote
from xml.sax.saxutils import escape

from moto.core.models import DEFAULT_ACCOUNT_ID
from moto.iam.models import iam_backends
from moto.kms.models import kms_backends
from moto.s3.models import FakeBucket, FakeDeleteMarker, FakeKey, s3_backends
from moto.secretsmanager.models import secretsmanager_backends
from werkzeug.wsgi import get_input_stream

from sandbox.iam import Call, Decision, Rule, decide, parse

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

POLICIES = Path(__file__).resolve().parents[1] / "docs" / "iam"
HOME_REGION: Final = "af-south-1"
COPY_REGION: Final = "eu-west-1"
PAGE = "/iam.json"
_REFUSED_KEPT = 1000
_log = logging.getLogger("sandbox.guard")

# By method, whether it is about an object, and the part of it that the query names.
_S3_ACTIONS: Mapping[tuple[str, bool, str], str] = {
    ("HEAD", False, ""): "ListBucket",
    ("GET", False, ""): "ListBucket",
    ("GET", False, "versions"): "ListBucketVersions",
    ("GET", False, "uploads"): "ListBucketMultipartUploads",
    ("GET", False, "location"): "GetBucketLocation",
    ("GET", False, "versioning"): "GetBucketVersioning",
    ("GET", False, "object-lock"): "GetBucketObjectLockConfiguration",
    ("GET", False, "encryption"): "GetEncryptionConfiguration",
    ("GET", False, "lifecycle"): "GetLifecycleConfiguration",
    ("PUT", False, "versioning"): "PutBucketVersioning",
    ("PUT", False, "object-lock"): "PutBucketObjectLockConfiguration",
    ("PUT", False, "encryption"): "PutEncryptionConfiguration",
    ("PUT", False, "lifecycle"): "PutLifecycleConfiguration",
    ("PUT", False, "policy"): "PutBucketPolicy",
    ("DELETE", False, ""): "DeleteBucket",
    ("DELETE", False, "lifecycle"): "PutLifecycleConfiguration",
    ("HEAD", True, ""): "GetObject",
    ("GET", True, ""): "GetObject",
    ("PUT", True, ""): "PutObject",
    ("PUT", True, "uploadId"): "PutObject",
    ("PUT", True, "retention"): "PutObjectRetention",
    ("POST", True, "uploads"): "PutObject",
    ("POST", True, "uploadId"): "PutObject",
    ("POST", True, "restore"): "RestoreObject",
    ("DELETE", True, ""): "DeleteObject",
    ("DELETE", True, "uploadId"): "AbortMultipartUpload",
}
# What a query may have besides.
_PLAIN = {
    *("prefix", "delimiter", "max-keys", "list-type", "continuation-token", "start-after", "encoding-type"),
    *("key-marker", "version-id-marker", "upload-id-marker", "max-uploads", "partNumber", "versionId"),
}
# A header that asks for more than the object.
_MORE = {
    "HTTP_X_AMZ_OBJECT_LOCK_MODE": "PutObjectRetention",
    "HTTP_X_AMZ_OBJECT_LOCK_LEGAL_HOLD": "PutObjectLegalHold",
    "HTTP_X_AMZ_BYPASS_GOVERNANCE_RETENTION": "BypassGovernanceRetention",
    "HTTP_X_AMZ_TAGGING": "PutObjectTagging",
    "HTTP_X_AMZ_ACL": "PutObjectAcl",
}
# S3 leaves these headers out of its answer to whom the action is not allowed.
_ONLY_FOR = {
    "x-amz-object-lock-mode": "s3:GetObjectRetention",
    "x-amz-object-lock-retain-until-date": "s3:GetObjectRetention",
    "x-amz-object-lock-legal-hold": "s3:GetObjectLegalHold",
}
_JSON_ACTIONS = {
    "secretsmanager.GetSecretValue": "secretsmanager:GetSecretValue",
    "TrentService.DescribeKey": "kms:DescribeKey",
}


class Unknown(Exception):
    """Nobody here knows what leave this request needs."""


@dataclass(frozen=True)
class Caller:
    """Who signed a request, and for which service of which region."""

    name: str
    region: str
    service: str

    @property
    def arn(self) -> str:
        """As the text of a refusal has it."""
        return f"arn:aws:iam::{DEFAULT_ACCOUNT_ID}:user/{self.name}"


class Guard:
    """WSGI middleware before moto, which judges neither resources nor conditions itself."""

    def __init__(self, app: "WSGIApplication") -> None:
        self._app = app
        self._used: set[tuple[str, str, str, str]] = set()
        self._refused: deque[dict[str, str]] = deque(maxlen=_REFUSED_KEPT)

    def __call__(self, environ: "WSGIEnvironment", start_response: "StartResponse") -> Iterable[bytes]:
        if environ["PATH_INFO"] == PAGE:
            return self._tell(environ["REQUEST_METHOD"] == "DELETE", start_response)
        caller = _caller(environ)
        if caller is None or not _is_bound(caller.name):
            return self._app(environ, start_response)
        try:
            calls = list(_calls(environ, caller))
        except Unknown as error:
            return self._refuse(environ, start_response, caller, Call("unknown", str(error)), Decision(False, ()))
        for call in calls:
            decision = self._decide(caller, call)
            if not decision.allowed:
                return self._refuse(environ, start_response, caller, call, decision)
        if caller.service != "s3":
            return self._app(environ, start_response)

        def start(status: str, headers: list[tuple[str, str]], exc_info: Any = None) -> Any:
            shown = [one for one in headers if self._may_see(caller, calls[0].resource, one[0])]
            return start_response(status, shown, exc_info)

        return self._app(environ, start)

    def _decide(self, caller: Caller, call: Call) -> Decision:
        decision = decide(_rules(caller.name, call), call)
        # Only what alone allows something is needed.
        if decision.allowed and len(decision.rules) == 1:
            (rule,) = decision.rules
            self._used.add((rule.document, rule.sid, rule.action, rule.resource))
        return decision

    def _may_see(self, caller: Caller, resource: str, header: str) -> bool:
        action = _ONLY_FOR.get(header.lower())
        return action is None or self._decide(caller, Call(action, resource)).allowed

    def _refuse(
        self,
        environ: "WSGIEnvironment",
        start_response: "StartResponse",
        caller: Caller,
        call: Call,
        decision: Decision,
    ) -> Iterable[bytes]:
        _read_to_the_end(environ)
        why = (
            "with an explicit deny in an identity-based policy"
            if decision.rules
            else f"because no identity-based policy allows the {call.action} action"
        )
        message = f'User: {caller.arn} is not authorized to perform: {call.action} on resource: "{call.resource}" {why}'
        self._refused.append({"identity": caller.name, "action": call.action, "resource": call.resource})
        _log.warning("%s", message)
        if caller.service == "s3":
            status, kind = "403 Forbidden", "application/xml"
            body = f"<Error><Code>AccessDenied</Code><Message>{escape(message)}</Message></Error>"
        else:
            status, kind = "400 Bad Request", "application/x-amz-json-1.1"
            body = json.dumps({"__type": "AccessDeniedException", "Message": message})
        sent = b"" if environ["REQUEST_METHOD"] == "HEAD" else body.encode()
        start_response(status, [("Content-Type", kind), ("Content-Length", str(len(sent)))])
        return [sent]

    def _tell(self, forget: bool, start_response: "StartResponse") -> Iterable[bytes]:
        body = json.dumps({"used": sorted(self._used.copy()), "refused": list(self._refused)}).encode()
        if forget:
            self._used.clear()
            self._refused.clear()
        start_response("200 OK", [("Content-Type", "application/json"), ("Content-Length", str(len(body)))])
        return [body]


def _caller(environ: "WSGIEnvironment") -> Caller | None:
    signed = environ.get("HTTP_AUTHORIZATION", "").partition("Credential=")[2].partition(",")[0].split("/")
    return Caller(signed[0], signed[2], signed[3]) if len(signed) == 5 else None


def _read_to_the_end(environ: "WSGIEnvironment") -> None:
    # A client that still sends would see the connection break, and not the answer.
    stream = get_input_stream(environ)
    while stream.read(1024 * 1024):
        pass


# -- policies ---------------------------------------------------------------------------------------------------


def _is_bound(name: str) -> bool:
    return name in _documents() or _iam_user(name) is not None


def _rules(name: str, call: Call) -> list[Rule]:
    values = _values(call)
    if name in _documents():
        return _filled(name, tuple(values.items()))
    return [rule for title, text in _policies_of(_iam_user(name)) for rule in parse(title, text, values)]


@cache
def _filled(name: str, values: tuple[tuple[str, str], ...]) -> list[Rule]:
    return [rule for title, text in _documents()[name] for rule in parse(title, text, dict(values))]


@cache
def _documents() -> dict[str, list[tuple[str, str]]]:
    """Name and text of each identity's documents; what it needs for KMS is one of its own."""
    found: dict[str, list[tuple[str, str]]] = {}
    for path in sorted(POLICIES.glob("*.json")):
        found.setdefault(path.stem.removesuffix("_kms"), []).append((path.stem, path.read_text()))
    return found


def _values(call: Call) -> dict[str, str]:
    """What a template's names stand for here. Tests have buckets of their own: which one it is says its region."""
    name = _bucket_of(call)
    bucket = _bucket(name)
    home = bucket is None or bucket.region_name != COPY_REGION
    key = f"arn:aws:kms:{{}}:{DEFAULT_ACCOUNT_ID}:key/*"
    return {
        "BUCKET": name if home else "",
        "COPY_BUCKET": "" if home else name,
        "REGION": HOME_REGION,
        "COPY_REGION": COPY_REGION,
        "ACCOUNT": DEFAULT_ACCOUNT_ID,
        "PROFILE": "production",
        "KMS_KEY": key.format(HOME_REGION),
        "COPY_KMS_KEY": key.format(COPY_REGION),
    }


def _bucket_of(call: Call) -> str:
    arn = call.context.get("kms:EncryptionContext:aws:s3:arn", call.resource)
    return arn.removeprefix("arn:aws:s3:::").partition("/")[0]


def _policies_of(user: Any) -> Iterator[tuple[str, str]]:
    yield from user.policies.items()
    for one in user.managed_policies.values():
        yield one.name, next(version.document for version in one.versions if version.is_default)


def _iam_user(access_key: str) -> Any:
    for user in list(iam_backends[DEFAULT_ACCOUNT_ID]["aws"].users.values()):
        if any(key.access_key_id == access_key for key in user.access_keys):
            return user
    return None


# -- what a request needs ---------------------------------------------------------------------------------------


def _calls(environ: "WSGIEnvironment", caller: Caller) -> Iterator[Call]:
    """Raises Unknown."""
    if caller.service == "s3":
        return _s3_calls(environ)
    return _json_calls(environ, caller.region)


def _s3_calls(environ: "WSGIEnvironment") -> Iterator[Call]:
    method, query = environ["REQUEST_METHOD"], parse_qs(environ.get("QUERY_STRING", ""), keep_blank_values=True)
    path = environ["PATH_INFO"].encode("latin-1").decode()
    name, _, key = path.removeprefix("/").partition("/")
    part = next((one for one in query if one not in _PLAIN), "")
    action = _S3_ACTIONS.get((method, bool(key), part))
    if not name or action is None:
        raise Unknown(f"{method} {path}?{environ.get('QUERY_STRING', '')}")
    arn = f"arn:aws:s3:::{name}"
    if not key:
        yield Call(f"s3:{action}", arn)
        return
    version = query.get("versionId", [""])[0]
    if action in ("GetObject", "DeleteObject") and version:
        action += "Version"
    yield Call(f"s3:{action}", f"{arn}/{key}")
    for header, more in _MORE.items():
        if header in environ:
            yield Call(f"s3:{more}", f"{arn}/{key}")
    if action.startswith("GetObject") and not part:
        yield from _reading(name, key, version, bytes_too=method == "GET")
    if action == "PutObject":
        yield from _copied(environ)
        yield from _encrypting(environ, name, key, query.get("uploadId", [""])[0])


def _copied(environ: "WSGIEnvironment") -> Iterator[Call]:
    source = environ.get("HTTP_X_AMZ_COPY_SOURCE")
    if source:
        path, _, version = source.partition("?versionId=")
        name, _, key = unquote(path).removeprefix("/").partition("/")
        yield Call(f"s3:GetObject{'Version' if version else ''}", f"arn:aws:s3:::{name}/{key}")
        yield from _reading(name, key, version, bytes_too=True)


def _reading(name: str, key: str, version: str, *, bytes_too: bool) -> Iterator[Call]:
    found = _object(name, key, version)
    if found is None:
        yield Call("s3:ListBucket", f"arn:aws:s3:::{name}")  # or S3 does not tell that it is not there
    elif bytes_too and found.encryption == "aws:kms":
        yield from _kms("Decrypt", name, key, found.kms_key_id, bool(found.bucket_key_enabled))


def _encrypting(environ: "WSGIEnvironment", name: str, key: str, upload_id: str) -> Iterator[Call]:
    bucket = _bucket(name)
    if bucket is None:
        return
    rule = (bucket.encryption or {}).get("Rule", {})
    default = rule.get("ApplyServerSideEncryptionByDefault", {})
    upload = bucket.multiparts.get(upload_id)
    asked = environ.get("HTTP_X_AMZ_SERVER_SIDE_ENCRYPTION") or (upload.sse_encryption if upload else None)
    key_id = environ.get("HTTP_X_AMZ_SERVER_SIDE_ENCRYPTION_AWS_KMS_KEY_ID") or (upload.kms_key_id if upload else None)
    if (asked or default.get("SSEAlgorithm")) == "aws:kms":
        # Of an upload in parts each part is encrypted by the data key of its beginning.
        action = "Decrypt" if upload_id else "GenerateDataKey"
        yield from _kms(action, name, key, key_id or default.get("KMSMasterKeyID"), bool(rule.get("BucketKeyEnabled")))


def _kms(action: str, name: str, key: str, key_id: str | None, bucket_key: bool) -> Iterator[Call]:
    bucket = _bucket(name)
    if key_id and bucket:  # without an id it is AWS's own key, for which S3 needs no leave of the caller
        arn = f"arn:aws:s3:::{name}" if bucket_key else f"arn:aws:s3:::{name}/{key}"
        context = {
            "kms:ViaService": f"s3.{bucket.region_name}.amazonaws.com",
            "kms:EncryptionContext:aws:s3:arn": arn,
        }
        yield Call(f"kms:{action}", _key_arn(key_id, bucket.region_name), context)


def _json_calls(environ: "WSGIEnvironment", region: str) -> Iterator[Call]:
    target = environ.get("HTTP_X_AMZ_TARGET", "")
    action = _JSON_ACTIONS.get(target)
    if action is None:
        raise Unknown(target)
    body = get_input_stream(environ).read()
    environ["wsgi.input"] = io.BytesIO(body)
    asked = json.loads(body)
    if action.startswith("kms:"):
        yield Call(action, _key_arn(asked["KeyId"], region))
    else:
        yield Call(action, _secret_arn(asked["SecretId"], region))


# -- what moto holds --------------------------------------------------------------------------------------------


def _bucket(name: str) -> FakeBucket | None:
    partition, account = s3_backends.bucket_accounts.get(name, ("aws", DEFAULT_ACCOUNT_ID))
    return s3_backends[account][partition].buckets.get(name)


def _object(name: str, key: str, version: str) -> FakeKey | None:
    bucket = _bucket(name)
    versions: list[FakeKey | FakeDeleteMarker] = (bucket.keys.getlist(key) if bucket else None) or []
    wanted = [one for one in versions if not version or one.version_id == version]
    return wanted[-1] if wanted and isinstance(wanted[-1], FakeKey) else None


def _key_arn(key_id: str, region: str) -> str:
    """AWS judges the key behind an alias; one behind which there is none is let through to whom any key is allowed."""
    name = key_id.rpartition(":")[2]
    if key_id.startswith("arn:") and not name.startswith("alias/"):
        return key_id
    known = kms_backends[DEFAULT_ACCOUNT_ID][region].get_key_id_from_alias(name) or name
    return f"arn:aws:kms:{region}:{DEFAULT_ACCOUNT_ID}:key/{known}"


def _secret_arn(name: str, region: str) -> str:
    if name.startswith("arn:"):
        return name
    kept = dict(secretsmanager_backends[DEFAULT_ACCOUNT_ID][region].secrets).get(name)
    if kept:
        return str(kept.arn)
    # AWS adds six characters, which one that is not there has not: whom the name is allowed is told so.
    return f"arn:aws:secretsmanager:{region}:{DEFAULT_ACCOUNT_ID}:secret:{name}-000000"
