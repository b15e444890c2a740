"""The closed list of reasons: each with what it means and what to do, from which the docs are made (pure)."""

from __future__ import annotations

from typing import NamedTuple


class Reason(NamedTuple):
    """What a reason means to a person."""

    means: str
    cure: str


REASONS: dict[str, Reason] = {
    # -- on the way -------------------------------------------------------------------------------------------------
    "Planned": Reason("The run is recorded; its pods are about to be made.", "Wait."),
    "WaitingForInput": Reason(
        "The resource that inputFrom names is not there, or not complete.",
        "Wait, or look at that resource. No deadline runs meanwhile.",
    ),
    "OutputInUse": Reason(
        "Another resource of the namespace writes to the same output, or is about to.",
        "Wait, or give one of them another output, with a new run.runId. No deadline runs meanwhile.",
    ),
    "StartingPods": Reason("The pods are being scheduled and started.", "Wait."),
    "WaitingForWorkers": Reason("The runner is up, no worker has joined yet.", "Wait, or look at the workers' pods."),
    "Working": Reason("Shards are being worked on.", "Wait."),
    "Publishing": Reason("All shards are done; they are looked at once more before the manifest is written.", "Wait."),
    "BackingOff": Reason("An attempt failed; the next one begins at status.retryTime.", "See status.lastFailure."),
    "SuspendedByUser": Reason(
        "run.suspend is true; the pods are gone, what is finished stays.", "Set run.suspend to false to go on."
    ),
    "Completed": Reason("The data set is complete, its manifest written.", "Nothing."),
    # -- what stands in the way, and may pass -------------------------------------------------------------------------
    "ImagePullFailed": Reason("The image cannot be had.", "Correct image or imagePullSecrets, with a new run.runId."),
    "SecretMissing": Reason(
        "A Secret that a pod refers to is not there, or lacks a key.", "Create it; the pod starts then."
    ),
    "ConfigMapMissing": Reason("A ConfigMap that a pod refers to is not there, or lacks a key.", "Create it."),
    "VolumeMissing": Reason("A volume cannot be mounted.", "See the message; create the claim or correct volumes."),
    "ContainerRefused": Reason(
        "The kubelet refuses the container: an image that wants root, a command that is not there.",
        "Correct image or podTemplate, with a new run.runId.",
    ),
    "PodRefused": Reason(
        "The API server refuses the pods: Pod Security, a missing service account, an admission rule.",
        "See the message; correct podTemplate or the namespace.",
    ),
    "QuotaExceeded": Reason("A ResourceQuota leaves no room for the pods.", "Raise it, or ask for less."),
    "Unschedulable": Reason("No node has room for a pod.", "Ask for less, or wait for a node."),
    "BackendMissing": Reason(
        "cluster.engine is dask-kubernetes, but there is no DaskCluster kind here.",
        "Install the Dask operator, or choose cluster.engine: native.",
    ),
    "InvalidSpec": Reason(
        "The API server refuses what the spec asks for, or inputFrom leads in a circle.",
        "See the message; correct the spec.",
    ),
    "Forbidden": Reason(
        "The API server does not let the operator make what the run consists of: its Role, or an admission rule.",
        "See the message; correct the operator's Role or the rule.",
    ),
    "NameConflict": Reason(
        "Something that this resource does not control has the name of one of its children.",
        "Remove it, or name the resource differently.",
    ),
    # -- what ends an attempt -----------------------------------------------------------------------------------------
    "RunnerLost": Reason("The runner's pod is gone, and nobody can tell why.", "Nothing: another attempt goes on."),
    "Evicted": Reason("A node evicted the pod.", "See the message; raise requests or the volume's limit."),
    "Disrupted": Reason("A node was drained, a spot node taken back, a pod preempted.", "Nothing: it costs no retry."),
    "RunnerOOMKilled": Reason("The runner used more memory than its limit.", "Raise runner.resources.limits.memory."),
    "WorkerOOMKilled": Reason(
        "A worker used more memory than its limit.",
        "Raise workers.resources.limits.memory, or lower what the script holds.",
    ),
    "WorkerFailed": Reason("A worker ended with an error.", "See its log in the ConfigMap of kept logs."),
    "RunnerFailed": Reason("The runner ended with an error that it could not name.", "See its log."),
    "JobFailed": Reason("Shards failed.", "See status.failures and the report."),
    "ScriptError": Reason("The script failed, or returned something that is no sample.", "Correct it; new run.runId."),
    "FormatError": Reason("A shard breaks the rules of the format.", "See the message; onError says what to do else."),
    "StorageError": Reason("A store refused or failed.", "See the message; check credentials and the store."),
    "NotFound": Reason("Something that is read is not there.", "See the message."),
    "AccessDenied": Reason("The store does not let us.", "Check the Secret or service account of the pods."),
    "InputChanged": Reason("An input was replaced while it was read.", "Start a new run when nothing writes there."),
    "NoSpace": Reason("A store or a scratch volume is full.", "See the message."),
    "OutputExists": Reason("The output is there already, from another job.", "Another output, or exists: overwrite."),
    "TaskTimeout": Reason("A shard made no progress for options.taskTimeout.", "See which sample hangs."),
    "WorkerDied": Reason("A shard kills its worker each time it runs alone.", "See the message; it may need memory."),
    "ClusterLost": Reason("The Dask scheduler is gone or does not answer.", "See the runner's and scheduler's pods."),
    "NoWorkers": Reason("No worker was there for options.waitForWorkers.", "Look at the workers' pods and the nodes."),
    "OutOfMemory": Reason("Python found no memory, short of the limit.", "Raise resources.limits.memory."),
    "UnexpectedError": Reason("A fault of tarmill itself.", "See the log for the traceback, and report it."),
    # -- what ends a run ----------------------------------------------------------------------------------------------
    "UsageError": Reason("The request cannot be carried out as it is written.", "Correct it; new run.runId."),
    "BackoffLimitExceeded": Reason("As many attempts failed as run.backoffLimit allows.", "See status.lastFailure."),
    "PendingDeadline": Reason("No attempt began to work within run.pendingDeadlineSeconds.", "See status.lastFailure."),
    "ProgressDeadline": Reason("Nothing went on for run.progressDeadlineSeconds.", "Look for a script that hangs."),
    "DeadlineExceeded": Reason("The run was active for run.activeDeadlineSeconds.", "Raise it; a new run goes on."),
    "InputFailed": Reason("The resource that inputFrom names has failed.", "Mend that one, then a new run.runId here."),
}
"""Reason -> what it means and what to do."""

CHAPTERS = {
    "Planned": "On the way",
    "ImagePullFailed": "What stands in the way, and may pass",
    "RunnerLost": "What ends an attempt",
    "UsageError": "What ends a run",
}
"""First reason of a chapter of the docs -> its title."""

OF_ERRORS = {
    "UsageError": "UsageError",
    "SpecError": "UsageError",
    "ShardPatternError": "UsageError",
    "NotFoundError": "NotFound",
    "AccessError": "AccessDenied",
    "ChangedError": "InputChanged",
    "NoSpaceError": "NoSpace",
    "StorageError": "StorageError",
    "ScriptError": "ScriptError",
    "TaskTimeout": "TaskTimeout",
    "WorkerDied": "WorkerDied",
    "OutputExistsError": "OutputExists",
    "JobFailed": "JobFailed",
    "FormatError": "FormatError",
    "TruncatedError": "FormatError",
    "HeaderError": "FormatError",
    "CompressionError": "FormatError",
    "SampleError": "FormatError",
    "LimitError": "FormatError",
    "ClusterError": "ClusterLost",
    "NoWorkersError": "NoWorkers",
    "MemoryError": "OutOfMemory",
    "UnexpectedError": "UnexpectedError",
    "TarmillError": "RunnerFailed",
    "Interrupted": "Disrupted",
    "Completed": "Completed",
}
"""Class of an error, as a runner's last words name it -> reason."""


def reason_of_error(name: str) -> str:
    """Give the reason for a runner's error, RunnerFailed for one that is not in our tree."""
    return OF_ERRORS.get(name, "RunnerFailed")
