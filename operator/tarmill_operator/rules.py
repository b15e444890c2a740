"""Rules of the five kinds in CEL: what the API server refuses, and with which words (pure).

The API server refuses a rule too whose cost it cannot bound, and bounds by the lengths that the schema names.
"""

from __future__ import annotations

from tarmill.spec import Kind
from tarmill.spec_base import camel
from tarmill.values import fields
from tarmill_operator.names import MAX_NAME
from tarmill_operator.schema import Schema

SCRIPTS = ("script", "reduce_script")
_ROLES = ("runner", "workers")
_ALWAYS_MUTABLE = {
    "run": ("suspend", "runId", "ttlSecondsAfterFinished", "deleteWhenExpired"),
    "workers": ("replicas",),
}
_PASSWORD = "://[^/@]*:[^/@]+@"
_SECRET = (
    "(PASSWORD|SECRET|SECRET_ACCESS_KEY|SESSION_TOKEN|HTTP_TOKEN|HF_TOKEN|SAS_TOKEN|ACCOUNT_KEY|CONNECTION_STRING)$"
)
"""Ends of the names of variables in which stores look for credentials; more would hit what is none (PAD_TOKEN)."""

Rule = dict[str, str]


def name_rules() -> list[Rule]:
    """Give the rules for a resource's name."""
    return _rules(
        [
            (
                f"self.metadata.name.size() <= {MAX_NAME}",
                f"metadata.name may have {MAX_NAME} characters at most: its pods carry it in their names",
            ),
            (
                "self.metadata.name.matches('^[a-z]([-a-z0-9]*[a-z0-9])?$')",
                "metadata.name becomes a DNS name: small letters, digits and '-', a letter first",
            ),
        ]
    )


def spec_rules(kind: Kind, properties: dict[str, Schema]) -> list[Rule]:
    """Give the rules for the spec of a kind.

    Args:
        kind: ours.
        properties: the schema of each field of its spec.
    """
    return [
        *_one_of_rules(kind),
        *_pod_rules(kind),
        *_secret_rules(kind),
        *_value_rules(),
        *_immutability_rules(properties),
    ]


def script_fields(kind: Kind) -> list[str]:
    """Name the fields of a kind that hold a script's text, as in Python."""
    return [field.name for field in fields(kind.spec) if field.name in SCRIPTS]


def has_input(kind: Kind) -> bool:
    """Tell whether a kind reads shards, which may come out of another resource."""
    return any(field.name == "input" for field in fields(kind.spec))


def _one_of_rules(kind: Kind) -> list[Rule]:
    rules = []
    if has_input(kind):
        rules.append({"rule": "has(self.input) != has(self.inputFrom)", "message": "give either input or inputFrom"})
    required = {f.name for f in fields(kind.spec) if f.required}
    for name in script_fields(kind):
        one = camel(name)
        if name in required:
            rule, message = f"has(self.{one}) != has(self.{one}From)", f"give either {one} or {one}From"
        else:
            rule = f"!(has(self.{one}) && has(self.{one}From))"
            message = f"give {one} or {one}From, not both"
        rules.append({"rule": rule, "message": message})
    return rules


def _pod_rules(kind: Kind) -> list[Rule]:
    """Refuse what a command line has and a pod has not."""
    rules = [("self.output != '-'", "output is a shard pattern or URL: a pod has no terminal")]
    if has_input(kind):
        rules.append(("!has(self.input) || self.input != '-'", "input is shards or a URL: nobody writes to a pod"))
    else:
        rules.append(
            ("self.sources.all(one, one != '-')", "sources are folders, files, lists or URLs: nobody writes to a pod")
        )
        # an image of one's own may hold the files, a template may mount them, of lists only the runner reads
        elsewhere = "has(self.image) || has(self.workers.podTemplate) || has(self.columns)"
        in_volume = "self.sources.exists(one, one.startsWith('/') || one.startsWith('file:'))"
        rules.append(
            (
                f"self.workers.replicas == 0 || has(self.workers.volumeMounts) || {elsewhere} || !{in_volume}",
                "sources in a volume: set workers.replicas to 0, as a ReadWriteOnce claim asks for, or mount it in the "
                "workers too",
            )
        )
    return _rules(rules)


def _secret_rules(kind: Kind) -> list[Rule]:
    """Refuse credentials where everybody reads them who may read the resource."""
    rules = []
    for name in ("input", "sources", "output", "rejected"):
        if any(field.name == name for field in fields(kind.spec)):
            held = f"self.{name}.matches('{_PASSWORD}')"
            if name == "sources":
                held = f"self.sources.exists(one, one.matches('{_PASSWORD}'))"
            rule = f"!{held}" if name in ("sources", "output") else f"!has(self.{name}) || !{held}"
            rules.append(
                (rule, f"{name} holds a password; it belongs into a Secret, for runner and workers in envFrom")
            )
    for role_name in _ROLES:
        given = f"self.{role_name}.env"
        rules.append(
            (
                f"!has({given}) || {given}.all(one, !has(one.value) || !one.name.matches('{_SECRET}'))",
                f"{role_name}.env holds a credential as a value; give it by valueFrom.secretKeyRef, or by envFrom",
            )
        )
    return _rules(rules)


def _value_rules() -> list[Rule]:
    rules = [
        ("self.workers.replicas >= 0 && self.workers.replicas <= 10000", "workers.replicas is 0 to 10000"),
        ("self.workers.threads >= 1 && self.workers.threads <= 256", "workers.threads is 1 to 256"),
        ("self.run.backoffLimit >= 0", "run.backoffLimit is a number of retries, 0 for none"),
        (
            "self.run.backoffBaseSeconds >= 0 && self.run.backoffBaseSeconds <= self.run.backoffMaxSeconds",
            "run.backoffBaseSeconds is 0 or more, and at most run.backoffMaxSeconds",
        ),
        (
            "self.run.pendingDeadlineSeconds >= 0 && self.run.progressDeadlineSeconds >= 0 && "
            "self.run.activeDeadlineSeconds >= 0",
            "deadlines are seconds, 0 for none",
        ),
        ("self.failure.maxWorkerRestarts >= -1", "failure.maxWorkerRestarts is a number of restarts, -1 for no limit"),
        ("self.run.ttlSecondsAfterFinished >= -1", "run.ttlSecondsAfterFinished is seconds, -1 to keep the children"),
    ]
    return _rules(rules)


def _rules(pairs: list[tuple[str, str]]) -> list[Rule]:
    return [{"rule": rule, "message": message} for rule, message in pairs]


def _immutability_rules(properties: dict[str, Schema]) -> list[Rule]:
    """One rule for each field, so that the message names it; what nearly always holds is asked first.

    The API server asks all of them at each write of a status too, and takes its time for each field that a rule names.

    What has no bound is not held, since the API server refuses rules whose cost it cannot tell (`podTemplate`, volumes,
    ...): a run goes by what it began with.
    """
    rules = []
    for name, schema in properties.items():
        inner = schema.get("properties", {})
        mutable = _ALWAYS_MUTABLE.get(name, ())
        if name in _ROLES or mutable:
            parts = [part for part in inner if part not in mutable and _is_bounded(inner[part])]
            held = [(f"{name}.", part) for part in parts]
        else:
            held = [("", name)] if _is_bounded(schema) else []
        for before, part in held:
            new, old = f"self.{before}{part}", f"oldSelf.{before}{part}"
            same = f"has({new}) ? has({old}) && {new} == {old} : !has({old})"
            rules.append(
                {
                    "rule": f"({same}) || self.run.runId != oldSelf.run.runId",
                    "message": f"{before}{part} is immutable; give run.runId another value to start a new run with it",
                }
            )
    return rules


def _is_bounded(schema: Schema) -> bool:
    """Tell whether the size of what a schema lets through has a bound that the API server can tell."""
    if schema.get("x-kubernetes-preserve-unknown-fields"):
        return False
    inner = [*schema.get("properties", {}).values(), schema.get("items"), schema.get("additionalProperties")]
    return all(_is_bounded(one) for one in inner if isinstance(one, dict))
