"""The chart on a real cluster: its own test, its notes, without rights on the whole cluster, upgrades."""

from __future__ import annotations

import json

import pytest
import yaml
from support.gates import Gate
from support.helm import ROOT
from support.kube import Kube
from support.maps import UPPER
from support.operated import RELEASE, System, install, is_over, phase
from support.shards_in_store import Data
from support.waiting import wait_for

pytestmark = [pytest.mark.real, pytest.mark.xdist_group("kube"), pytest.mark.timeout(400)]


def test_helm_test_passes_and_the_notes_tell_the_next_step(system: System) -> None:
    assert "Succeeded" in system.home.helm("test", RELEASE)
    notes = system.home.helm("get", "notes", RELEASE)
    assert f"helm test {RELEASE} --namespace {system.home.space}" in notes
    assert f"{system.url}/" in notes
    example = notes.partition("<<'END'\n")[2].partition("\nEND\n")[0]
    assert f"output: {system.url}/out-@.tar" in example
    system.home.kubectl("apply", "--dry-run=server", "--validate=strict", "-f", "-", input=example)


def test_an_upgrade_brings_the_definitions_up_to_date_while_a_job_runs(system: System, data: Data) -> None:
    gate = Gate(system, data.name)
    output = f"{data.url}/mapped/out-@.tar.gz"
    with system.namespace() as space:
        space.apply(system.resource("ShardMap", "upper", input=data.input, output=output, script=gate.script))
        space.wait("shardmap", "upper", lambda found: phase(found) == "Running", 90, "work")
        # as an older release had it
        definition = system.home.get("crd", "shardmaps.tarmill.dev")
        version = definition["spec"]["versions"][0]
        version["additionalPrinterColumns"] = version["additionalPrinterColumns"][:1]
        system.home.kubectl("replace", "-f", "-", input=json.dumps(definition))
        [before] = system.pods()
        install(system.home, operator={"progressSeconds": 0.75, "logFormat": "text"})
        # helm waits for the new pod alone: the old one may still be ending
        wait_for(lambda: before not in system.pods(), 60, "the old operator to be gone")
        renewed = system.home.get("crd", "shardmaps.tarmill.dev")["spec"]["versions"][0]
        path = ROOT / "crds" / "tarmill.dev_shardmaps.yaml"
        wanted = yaml.safe_load(path.read_text())["spec"]["versions"][0]
        assert len(renewed["additionalPrinterColumns"]) == len(wanted["additionalPrinterColumns"])
        gate.open()
        done = space.wait("shardmap", "upper", is_over, 120, "the end")
        assert phase(done) == "Succeeded", done["status"]
        assert done["status"]["attempt"] == 1
    assert system.bytes_of(f"{data.name}/mapped") == data.mapped()


def test_an_operator_of_some_namespaces_needs_no_rights_on_the_cluster_and_leaves_others_alone(
    system: System, data: Data, kube: Kube
) -> None:
    with kube.namespace() as home, system.namespace() as ours, system.namespace() as other:
        with system.stopped():
            install(home, watchNamespaces=[ours.space], crds={"install": False}, storage={"enabled": False})
            assert home.space not in kube.kubectl("get", "clusterroles,clusterrolebindings", "-o", "yaml")
            for space in (ours, other):
                output = f"{data.url}/{space.space}/out-@.tar.gz"
                space.apply(system.resource("ShardMap", "upper", input=data.input, output=output, script=UPPER))
            done = ours.wait("shardmap", "upper", is_over, 120, "the end")
            assert phase(done) == "Succeeded", done["status"]
            assert other.get("shardmap", "upper")["status"] == {"observedGeneration": -1}
            assert "forbidden" not in home.kubectl("logs", f"deployment/{RELEASE}")
            home.helm("uninstall", RELEASE, "--wait")
        assert phase(other.wait("shardmap", "upper", is_over, 120, "the end")) == "Succeeded"
        assert system.bytes_of(f"{data.name}/{ours.space}") == data.mapped()


def test_what_is_uninstalled_leaves_resources_and_nothing_else(system: System, kube: Kube) -> None:
    with kube.namespace() as home:
        install(home, storage={"enabled": False}, crds={"install": False})
        made = {"apiVersion": "tarmill.dev/v1alpha1", "kind": "ShardExtract", "metadata": {"name": "kept"}}
        home.apply({**made, "spec": {"input": "s3://b/in-@4.tar", "output": "s3://b/o.txt", "run": {"suspend": True}}})
        home.helm("uninstall", RELEASE, "--wait")
        assert home.get("shardextract", "kept")["spec"]["input"] == "s3://b/in-@4.tar"
        home.wait_for(lambda: not home.names("pod"), what="the end of the operator")
        for kind in ("deployment", "role", "rolebinding", "poddisruptionbudget", "lease"):
            assert home.names(kind) == ([RELEASE] if kind == "lease" else []), kind
        assert home.space not in kube.kubectl("get", "clusterroles,clusterrolebindings", "-o", "name")
        home.delete("shardextract", "kept")
