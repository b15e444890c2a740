"""The ground under the operator's tests: the cluster works, and so do both images in pods that may do nothing."""

from __future__ import annotations

import json
import threading
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import pytest
from support.kube import Kube, KubectlError
from support.pods import has_ended, is_ready, pod

pytestmark = [pytest.mark.real, pytest.mark.xdist_group("kube"), pytest.mark.timeout(400)]

SHARDS = """
import io, tarfile
for shard in range(4):
    with tarfile.open(f"/tmp/in-{shard}.tar", "w") as archive:
        for sample in range(25):
            entry = tarfile.TarInfo(f"{shard}-{sample}.txt")
            entry.size = 5
            archive.addfile(entry, io.BytesIO(b"hello"))
"""
UPPER = """
def process_sample(sample):
    return {**sample, "txt": sample["txt"].upper()}
"""


def server(name: str, image: str) -> dict[str, Any]:
    """A pod that answers on port 8000, by a port of its own name."""
    made = pod(
        name,
        image,
        ["python", "-m", "http.server", "8000"],
        labels={"app": name},
        ports=[{"name": "web", "containerPort": 8000}],
        readinessProbe={"tcpSocket": {"port": "web"}, "periodSeconds": 1},
    )
    made["spec"]["restartPolicy"] = "Always"
    return made


def reaches(space: Kube, source: str, target: str) -> bool:
    """Whether a pod gets an answer from a Service."""
    ask = f"print(urllib.request.urlopen('http://{target}', timeout=3).status)"
    code = f"import urllib.request\ntry: {ask}\nexcept OSError: print('no answer')"
    return space.exec(source, "python", "-c", code).strip() == "200"


def service(name: str) -> dict[str, Any]:
    spec = {"selector": {"app": name}, "ports": [{"port": 80, "targetPort": "web"}]}
    return {"apiVersion": "v1", "kind": "Service", "metadata": {"name": name}, "spec": spec}


def policy(app: str, **rules: Any) -> dict[str, Any]:
    """A NetworkPolicy on the pods of one app that allows what the rules for ingress or egress say."""
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {"name": f"{app}-{'-'.join(rules)}"},
        "spec": {
            "podSelector": {"matchLabels": {"app": app}},
            "policyTypes": [kind.capitalize() for kind in rules],
            **rules,
        },
    }


def test_the_cluster_runs_a_version_that_has_server_side_validation(kube: Kube) -> None:
    version = json.loads(kube.kubectl("version", "-o", "json"))["serverVersion"]
    assert (int(version["major"]), int(version["minor"].rstrip("+"))) >= (1, 31)
    assert kube.wait("node", kube.names("node")[0], is_ready)


def test_a_restricted_pod_with_a_read_only_root_maps_shards_and_verifies_them(kube: Kube) -> None:
    steps = [
        f"python -c '{SHARDS}'",
        f"cat > /tmp/upper.py <<'E'\n{UPPER}\nE",
        "htmapper -p /tmp/upper.py '/tmp/in-@4.tar' '/tmp/out-@4.tar' --workers 2",
        "tarmill verify '/tmp/out-@4.tar'",
        'python -c \'import tarfile; print(tarfile.open("/tmp/out-3.tar").extractfile("3-24.txt").read())\'',
        "id -u; touch /x",
    ]
    with kube.namespace() as space:
        space.apply(pod("map", kube.image("runner"), ["bash", "-c", "\n".join(["set -e", *steps])]))
        space.wait("pod", "map", has_ended, what="the end")
        log = space.logs("map")
        assert "100 samples" in log
        assert "b'HELLO'\n65532\ntouch: cannot touch '/x': Read-only file system" in log


def test_the_namespace_refuses_a_pod_that_wants_more_than_restricted_allows(kube: Kube) -> None:
    greedy = pod("greedy", "localhost/any", ["true"], securityContext={"privileged": True})
    with kube.namespace() as space, pytest.raises(KubectlError, match='violates PodSecurity "restricted'):
        space.apply(greedy)


def test_pods_talk_by_a_services_name_until_a_network_policy_forbids_it(kube: Kube) -> None:
    image, names = kube.image("runner"), ("web", "friend", "stranger")
    friends_only = policy(
        "web", ingress=[{"from": [{"podSelector": {"matchLabels": {"app": "friend"}}}], "ports": [{"port": "web"}]}]
    )
    no_way_out = policy("web", egress=[])
    with kube.namespace() as space:
        space.apply(*map(service, names), *(server(name, image) for name in names))
        for name in names:
            space.wait("pod", name, is_ready, what="readiness")
        for source, target in (("friend", "web"), ("stranger", "web"), ("web", "friend")):
            space.wait_for(partial(reaches, space, source, target), what=f"an answer of {target} to {source}")

        space.apply(friends_only)
        space.wait_for(lambda: not reaches(space, "stranger", "web"), what="a refusal of the stranger")
        space.wait_for(partial(reaches, space, "friend", "web"), what="an answer to the friend")
        space.wait_for(partial(reaches, space, "web", "friend"), what="an answer of the friend")
        space.apply(no_way_out)
        space.wait_for(lambda: not reaches(space, "web", "friend"), what="a refusal of the way out")
        space.wait_for(partial(reaches, space, "friend", "web"), what="an answer to the friend")

        # Probes come from the node itself, and kubectl goes that way too.
        space.wait("pod", "web", is_ready, what="readiness")
        with space.port_forward("pod/web", 8000) as address, urllib.request.urlopen(f"http://{address}") as answer:
            assert answer.status == 200


def test_the_operators_image_imports_kopf_as_its_own_user_and_holds_no_pip(kube: Kube) -> None:
    code = (
        "import getpass, os, kopf, cryptography, prometheus_client, tarmill_operator, tarmill.spec\n"
        "import importlib.util as i\n"
        "print(os.getuid(), getpass.getuser(), i.find_spec('pip'))"
    )
    with kube.namespace() as space:
        space.apply(pod("operator", kube.image("operator"), ["python", "-c", code]))
        assert space.wait("pod", "operator", has_ended, what="the end") == "Succeeded"
        assert space.logs("operator") == "65532 tarmill None\n"


def test_a_wait_outlasts_the_absence_of_the_api_server(kube: Kube) -> None:
    def settings(value: str) -> dict[str, Any]:
        return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "settings"}, "data": {"a": value}}

    kube.local_node()
    asked = threading.Event()

    def is_new(found: Any) -> bool:
        asked.set()
        return found.get("data") == {"a": "new"}

    with kube.namespace() as space, ThreadPoolExecutor(1) as pool:
        space.apply(settings("old"))
        waiting = pool.submit(space.wait, "configmap", "settings", is_new)
        assert asked.wait(30)
        with kube.without("apiserver"), pytest.raises(KubectlError):
            space.names("configmap")
        space.apply(settings("new"))
        assert waiting.result()


def test_a_failure_in_a_namespace_tells_its_pods_events_and_logs(kube: Kube) -> None:
    def failing() -> None:
        with kube.namespace() as space:
            command = ["python", "-c", "print('the cause'); raise SystemExit(3)"]
            space.apply(pod("broken", kube.image("operator"), command))
            assert space.wait("pod", "broken", has_ended) == "Failed"
            space.wait("pod", "broken", lambda found: has_ended(found) == "Succeeded", 1, "success")

    with pytest.raises(AssertionError, match="in vain for success of pod broken") as caught:
        failing()
    story = "".join(caught.value.__notes__)
    assert "pod/broken" in story
    assert "Scheduled" in story
    assert "the cause" in story
    assert kube.cluster.story(1).partition("\n")[0] in story
