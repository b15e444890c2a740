"""What a resource tells of itself: schema of its status, and the columns of `kubectl get` (pure)."""

from __future__ import annotations

from typing import Any

from tarmill_operator.schema import Schema

PHASES = (
    "Pending",
    "WaitingForInput",
    "Starting",
    "Running",
    "Retrying",
    "Suspended",
    "Succeeded",
    "Failed",
)


def _text(description: str) -> Schema:
    return {"type": "string", "description": description}


def _number(description: str) -> Schema:
    return {"type": "integer", "format": "int64", "description": description}


def _time(description: str) -> Schema:
    return {"type": "string", "format": "date-time", "description": description}


def _numbers(description: str, **fields: str) -> Schema:
    properties = {name: _number(text) for name, text in fields.items()}
    return {"type": "object", "description": description, "properties": properties}


_CONDITION = {
    "type": "object",
    "required": ["type", "status", "reason", "message", "lastTransitionTime"],
    "properties": {
        "type": _text("Name of the condition."),
        "status": {"type": "string", "enum": ["True", "False", "Unknown"], "description": "Whether it holds."},
        "reason": _text("Why, as one word of a closed list."),
        "message": _text("Why, for people."),
        "observedGeneration": _number("Generation of the spec that this was decided on."),
        "lastTransitionTime": _time("When the status changed last."),
    },
}

STATUS: Schema = {
    "type": "object",
    "description": "How it goes, as the operator tells.",
    # A new resource would be "Current" to kstatus, and so to Flux and `kubectl wait`, if this were not there.
    "default": {"observedGeneration": -1},
    "properties": {
        "observedGeneration": {**_number("Generation of the spec that the status is about."), "default": -1},
        "phase": {"type": "string", "enum": list(PHASES), "description": "Where the run stands, in one word."},
        "reason": _text("Why it stands there, as one word of a closed list."),
        "message": _text("Why it stands there, for people."),
        "runId": _text("run.runId of the run that the status is about."),
        "run": _number("How many runs there have been."),
        "attempt": _number("Attempt of this run, from 1."),
        "startTime": _time("When this run was begun."),
        "attemptStartTime": _time("When this attempt was begun."),
        "runningTime": _time("When this attempt was seen at work first."),
        "retryTime": _time("When the next attempt begins."),
        "lastProgressTime": _time("When work was seen to go on last."),
        "suspendTime": _time("When the run was suspended."),
        "activeSeconds": _number("Seconds that attempts took which have ended; activeDeadlineSeconds goes by them."),
        "completionTime": _time("When the run ended."),
        "cleanedTime": _time("When the children of the ended run were removed."),
        "shards": _numbers("Tasks of the job.", total="All.", done="Finished.", failed="Failed for good."),
        "shardsText": _text("Finished of all shards, as in 3/10."),
        "samples": _numbers(
            "How many samples there were.", read="Read.", written="Written.", dropped="Left out, for a counted reason."
        ),
        "bytes": _numbers("How many bytes there were.", read="Read.", written="Written.", total="To be read."),
        "percent": _number("How much is done."),
        "etaSeconds": _number("Seconds until it is done, as far as can be told."),
        "eta": _text("Time until it is done, for people, as in 2m10s."),
        "workers": _numbers("Worker pods.", desired="Asked for.", ready="At work."),
        "workersText": _text("Ready of all workers, as in 2/2."),
        "restarts": _numbers(
            "Attempts that ended early.", counted="By failures.", uncounted="By disruptions, which cost no retry."
        ),
        "lastFailure": {
            "type": "object",
            "description": "The root cause of what went wrong last.",
            "properties": {
                "component": {"type": "string", "description": "runner, worker, or input."},
                "pod": _text("The pod."),
                "reason": _text("Why, as one word of a closed list."),
                "exitCode": _number("Exit code of the container."),
                "message": _text("What was found, and the cure."),
                "time": _time("When it was seen."),
            },
        },
        "failures": {
            "type": "array",
            "description": "The first shards that failed.",
            "items": {
                "type": "object",
                "properties": {
                    "shard": _text("Its name."),
                    "reason": _text("Why."),
                    "message": _text("Why, at length."),
                },
            },
        },
        "image": _text("Image that the run began with."),
        "input": _text("Shard pattern that inputFrom stood for when the run began."),
        "output": _text("Shard pattern of what is written."),
        "manifest": _text("URL of the data set's manifest, once it is complete."),
        "report": _text("URL of the whole report."),
        "conditions": {
            "type": "array",
            "description": "How it goes, as kubectl wait, Argo CD and Flux ask: Ready, Complete, Failed, ...",
            "items": _CONDITION,
            "x-kubernetes-list-type": "map",
            "x-kubernetes-list-map-keys": ["type"],
        },
    },
}


def _column(name: str, path: str, kind: str = "string", priority: int = 0) -> dict[str, Any]:
    return {"name": name, "jsonPath": path, "type": kind, "priority": priority}


PRINTER_COLUMNS = [
    _column("Phase", ".status.phase"),
    _column("Shards", ".status.shardsText"),
    _column("Failed", ".status.shards.failed", "integer"),
    _column("Workers", ".status.workersText"),
    _column("ETA", ".status.eta"),
    _column("Age", ".metadata.creationTimestamp", "date"),
    _column("Reason", ".status.reason", priority=1),
    _column("Attempt", ".status.attempt", "integer", 1),
    _column("Output", ".status.output", priority=1),
]
