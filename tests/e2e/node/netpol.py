"""Enforce NetworkPolicy on the test node, which has no network plug-in that would.

Pods, namespaces and policies are written as one iptables chain in front of FORWARD, anew whenever one of them changes.
All traffic of pods passes it, also between pods of one bridge, since the node sets bridge-nf-call-iptables. What comes
from the node itself (probes, `kubectl port-forward`) does not pass FORWARD and stays allowed, as the API demands;
this machine outside the node is a stranger like any other. Not covered: traffic to the node's own addresses (DNS).

usage: netpol.py SERVER FOLDER    (of ca.crt, admin.crt and admin.key; `node start netpol` starts it inside the node)
"""

from __future__ import annotations

import ipaddress
import json
import ssl
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterable, Iterator, Mapping, Sequence
from http.client import HTTPException
from typing import Any

CHAIN = "NETPOL"
# A packet that a policy allows is marked: a verdict would skip the policies of the other side.
ALLOWED = "0x100000"
# What a server that is killed leaves behind: no connection, half an answer, half a document.
AWAY = (OSError, HTTPException, ValueError)
WATCHED = ("/api/v1/namespaces", "/api/v1/pods", "/apis/networking.k8s.io/v1/networkpolicies")

Object = Mapping[str, Any]


def labels(thing: Object) -> Mapping[str, str]:
    return thing["metadata"].get("labels") or {}


def selects(selector: Object, found: Mapping[str, str]) -> bool:
    """Whether a label selector matches; an empty one matches all."""
    if any(found.get(name) != value for name, value in (selector.get("matchLabels") or {}).items()):
        return False
    return all(_holds(expression, found) for expression in selector.get("matchExpressions") or [])


def _holds(expression: Object, found: Mapping[str, str]) -> bool:
    value, values = found.get(expression["key"]), expression.get("values") or []
    match expression["operator"]:
        case "Exists":
            return value is not None
        case "DoesNotExist":
            return value is None
        case "In":
            return value in values
        case _:
            return value not in values


def ranges(
    peers: Sequence[Object] | None, namespace: str, pods: Sequence[Object], spaces: Mapping[str, Mapping[str, str]]
) -> list[str]:
    """The address ranges that a list of peers names; no list names all."""
    if not peers:
        return ["0.0.0.0/0"]
    found: list[str] = []
    for peer in peers:
        if block := peer.get("ipBlock"):
            found += map(str, _without(block["cidr"], block.get("except") or []))
            continue
        names = {namespace}
        if "namespaceSelector" in peer:
            names = {name for name, marks in spaces.items() if selects(peer["namespaceSelector"], marks)}
        selector = peer.get("podSelector", {})
        mine = (pod for pod in pods if pod["metadata"]["namespace"] in names and selects(selector, labels(pod)))
        found += [f"{pod['status']['podIP']}/32" for pod in mine]
    return found


def _without(cidr: str, holes: Iterable[str]) -> list[ipaddress.IPv4Network]:
    whole = [ipaddress.IPv4Network(cidr)]
    for hole in map(ipaddress.IPv4Network, holes):
        whole = [part for net in whole for part in (net.address_exclude(hole) if hole.subnet_of(net) else [net])]
    return whole


def port_matches(ports: Sequence[Object] | None, pod: Object | None) -> Iterator[str]:
    """The iptables matches of a rule's ports; named ones are those of the pod that is reached."""
    if not ports:
        yield ""
    for port in ports or []:
        protocol, number = port.get("protocol", "TCP").lower(), port.get("port")
        if isinstance(number, str):
            number = _named_port(number, pod)
            if number is None:
                continue
        span = "" if number is None else f" --dport {number}:{port.get('endPort', number)}"
        yield f" -p {protocol}{span}"


def _named_port(name: str, pod: Object | None) -> int | None:
    containers = pod["spec"]["containers"] if pod else []
    ports = (port for container in containers for port in container.get("ports", []))
    return next((port["containerPort"] for port in ports if port.get("name") == name), None)


def rules(policies: Sequence[Object], pods: Sequence[Object], spaces: Mapping[str, Mapping[str, str]]) -> Iterator[str]:
    """The chain's rules: for each pod that a policy selects, what is allowed, then a refusal of the rest."""
    yield f"-A {CHAIN} -m conntrack --ctstate RELATED,ESTABLISHED -j RETURN"
    for pod in pods:
        address, namespace = pod["status"]["podIP"], pod["metadata"]["namespace"]
        mine = [
            policy["spec"]
            for policy in policies
            if policy["metadata"]["namespace"] == namespace
            and selects(policy["spec"].get("podSelector", {}), labels(pod))
        ]
        for kind, key, here, there in (("Ingress", "from", "-d", "-s"), ("Egress", "to", "-s", "-d")):
            chosen = [spec for spec in mine if kind in (spec.get("policyTypes") or ["Ingress"])]
            if not chosen:
                continue
            yield f"-A {CHAIN} -j MARK --set-xmark 0x0/{ALLOWED}"
            for rule in (rule for spec in chosen for rule in spec.get(kind.lower()) or []):
                for other in ranges(rule.get(key), namespace, pods, spaces):
                    for ports in port_matches(rule.get("ports"), pod if kind == "Ingress" else None):
                        match = f"{here} {address}/32 {there} {other}{ports}"
                        yield f"-A {CHAIN} {match} -j MARK --set-xmark {ALLOWED}/{ALLOWED}"
            yield f"-A {CHAIN} {here} {address}/32 -m mark --mark 0x0/{ALLOWED} -j REJECT"


class Api:
    """The few calls to the API server."""

    def __init__(self, server: str, folder: str) -> None:
        self._server = server
        self._tls = ssl.create_default_context(cafile=f"{folder}/ca.crt")
        self._tls.load_cert_chain(f"{folder}/admin.crt", f"{folder}/admin.key")

    def list(self, path: str) -> list[Any]:
        with urllib.request.urlopen(self._server + path, context=self._tls, timeout=5) as answer:
            items: list[Any] = json.load(answer)["items"]
            return items

    def ring_at_changes(self, path: str, bell: threading.Event) -> None:
        """Set the event at each change under a path, and after each break of the watch, for ever."""
        while True:
            try:
                watch = f"{self._server}{path}?watch=true&timeoutSeconds=60"
                with urllib.request.urlopen(watch, context=self._tls, timeout=70) as answer:
                    for _ in answer:
                        bell.set()
            except AWAY:
                time.sleep(0.5)
            bell.set()


def write_chain(text: str, first: bool) -> None:
    """Replace the chain in one step, in front of what kube-proxy wrote; a CalledProcessError when that failed."""
    unhook = "" if first else f"-D FORWARD -j {CHAIN}\n"
    script = f"*filter\n:{CHAIN} - [0:0]\n{unhook}-I FORWARD -j {CHAIN}\n{text}\nCOMMIT\n"
    subprocess.run(["iptables-restore", "-w", "5", "--noflush"], check=True, text=True, input=script)


def counts(pod: Object) -> bool:
    """Whether a pod has an address of its own on the pods' network."""
    status = pod["status"]
    ended = status["phase"] in ("Succeeded", "Failed")
    return bool(status.get("podIP")) and not pod["spec"].get("hostNetwork") and not ended


def main(server: str, folder: str) -> None:
    api, bell = Api(server, folder), threading.Event()
    for path in WATCHED:
        threading.Thread(target=api.ring_at_changes, args=(path, bell), daemon=True).start()
    shown = ""
    while True:
        bell.clear()  # before the lists: what changes after them rings again
        try:
            namespaces, pods, policies = map(api.list, WATCHED)
            spaces = {namespace["metadata"]["name"]: labels(namespace) for namespace in namespaces}
            text = "\n".join(rules(policies, [pod for pod in pods if counts(pod)], spaces))
            if text != shown:
                write_chain(text, first=not shown)
                shown = text
                print(f"{time.time():.1f} {len(text.splitlines())} rules", flush=True)
        except (*AWAY, subprocess.CalledProcessError) as error:  # the last rules stay in force
            print(f"{time.time():.1f} {error!r}", flush=True)
            time.sleep(0.5)
            continue
        bell.wait(2)  # also without a change: a watch may have broken unseen
        time.sleep(0.05)  # changes come in swarms


if __name__ == "__main__":
    main(*sys.argv[1:])
