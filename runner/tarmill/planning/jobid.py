"""The job id: equal for jobs that give the same bytes, so that the same command resumes itself."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence

from xxhash import xxh3_128_hexdigest

from tarmill.planning.tasks import Shard
from tarmill.spec import FORMAT_VERSION, JobSpec
from tarmill.spec_base import option_of
from tarmill.values import fields


def job_id(kind: str, spec: JobSpec, inputs: Iterable[Shard], outputs: Sequence[str]) -> str:
    """Hash what decides over the output's bytes: inputs with sizes and versions, options that change bytes, outputs.

    Args:
        kind: a kind of `spec.KINDS`.
        spec: only fields declared with `identity=True` count.
        inputs: in order.
        outputs: URLs without secrets, in order.

    Returns:
        16 hex digits.
    """
    identity = {field.name: getattr(spec, field.name) for field in fields(spec) if option_of(field).identity}
    facts = {
        "format": FORMAT_VERSION,
        "kind": kind,
        "options": identity,
        "inputs": [(shard.label, shard.size_bytes, shard.version) for shard in inputs],
        "outputs": list(outputs),
    }
    text = json.dumps(facts, sort_keys=True, ensure_ascii=True, separators=(",", ":"))
    return xxh3_128_hexdigest(text.encode())[:16]
