"""AWS's decision on one call: identity policies as JSON, and whether they allow an action on a resource.

As AWS decides it, and no more than docs/iam uses: `Action`, `Resource`, the operators StringEquals and StringLike. A
document with anything else is refused, since what is not understood here would be allowed or denied by chance.
"""

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from string import Template
from typing import Any

_KNOWN = {"Sid", "Effect", "Action", "Resource", "Condition"}
_OPERATORS = {"StringEquals", "StringLike"}


@dataclass(frozen=True)
class Call:
    """One thing that a request needs leave for. `context` are the condition keys that come with it."""

    action: str
    resource: str
    context: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Condition:
    """One key of a statement's conditions: what it may be. With `like`, `*` and `?` stand for others."""

    key: str
    values: tuple[str, ...]
    like: bool

    def holds(self, context: Mapping[str, str]) -> bool:
        """A key that does not come with the call fits nothing."""
        found = context.get(self.key)
        if found is None:
            return False
        return any(matches(value, found) if self.like else value == found for value in self.values)


@dataclass(frozen=True)
class Rule:
    """One action on one resource of one statement. `resource` is as the document has it, `pattern` filled in."""

    document: str
    sid: str
    allows: bool
    action: str
    resource: str
    pattern: str
    conditions: tuple[Condition, ...]

    def fits(self, call: Call) -> bool:
        """Whether it speaks of this call."""
        return (
            matches(self.action.lower(), call.action.lower())  # IAM does not tell their case apart
            and matches(self.pattern, call.resource)
            and all(condition.holds(call.context) for condition in self.conditions)
        )


@dataclass(frozen=True)
class Decision:
    """Allowed or not, and by which rules; none where nothing speaks of the call, which is a no, too."""

    allowed: bool
    rules: tuple[Rule, ...]


def decide(rules: Iterable[Rule], call: Call) -> Decision:
    """A Deny wins over any Allow; without an Allow it is no."""
    fitting = [rule for rule in rules if rule.fits(call)]
    denying = tuple(rule for rule in fitting if not rule.allows)
    return Decision(bool(fitting) and not denying, denying or tuple(fitting))


def parse(name: str, text: str, values: Mapping[str, str]) -> list[Rule]:
    """The rules of a policy document, its `${NAME}` filled in. Raises ValueError for what is not understood."""
    rules = []
    for statement in _several(json.loads(text)["Statement"]):
        if unknown := statement.keys() - _KNOWN:
            raise ValueError(f"policy {name} has {', '.join(sorted(unknown))}, which the sandbox cannot judge")
        conditions = tuple(_conditions(name, statement.get("Condition", {}), values))
        rules += [
            Rule(
                name,
                statement.get("Sid", ""),
                statement["Effect"] == "Allow",
                action,
                resource,
                _filled(resource, values),
                conditions,
            )
            for action in _several(statement["Action"])
            for resource in _several(statement["Resource"])
        ]
    return rules


def _conditions(name: str, block: Mapping[str, Any], values: Mapping[str, str]) -> Iterable[Condition]:
    for operator, keys in block.items():
        if operator not in _OPERATORS:
            raise ValueError(f"policy {name} has the condition {operator}, which the sandbox cannot judge")
        for key, wanted in keys.items():
            filled = tuple(_filled(value, values) for value in _several(wanted))
            yield Condition(key, filled, operator == "StringLike")


def _several(found: Any) -> list[Any]:
    # IAM takes one in place of a list of one.
    return found if isinstance(found, list) else [found]


def _filled(text: str, values: Mapping[str, str]) -> str:
    try:
        return Template(text).substitute(values)
    except KeyError as error:
        raise ValueError(f"{text} has a name that nothing fills in: {error}") from None


def matches(pattern: str, text: str) -> bool:
    """Whether `pattern`, in which `*` stands for any text and `?` for one character, is all of `text`."""
    return _compiled(pattern).fullmatch(text) is not None


@cache
def _compiled(pattern: str) -> re.Pattern[str]:
    parts = (".*" if one == "*" else "." if one == "?" else re.escape(one) for one in pattern)
    return re.compile("".join(parts), re.DOTALL)
