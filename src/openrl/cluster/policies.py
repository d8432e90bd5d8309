"""Which connections the NetworkPolicies allow. What Kubernetes allows always, probes of the node, is not asked here."""

import ipaddress
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from openrl.cluster.manifests import NetworkPolicy, Peer, PolicyPort, PolicyRule

Direction = Literal["Ingress", "Egress"]


@dataclass(frozen=True, slots=True)
class End:
    """One end of a connection. `labels` is None for what is no pod of the cluster."""

    address: str
    labels: Mapping[str, str] | None = None
    ports: Mapping[str, int] = field(default_factory=dict[str, int])  # by name


def is_allowed(policies: Sequence[NetworkPolicy], namespace: str, source: End, target: End, port: int) -> bool:
    """Whether `source` may connect to a port of `target`."""
    return _may(policies, namespace, "Egress", source, target, target, port) and _may(
        policies, namespace, "Ingress", target, source, target, port
    )


def _may(
    policies: Sequence[NetworkPolicy],
    namespace: str,
    direction: Direction,
    pod: End,
    other: End,
    target: End,
    port: int,
) -> bool:
    """Whether the policies about `pod` let it talk with `other` in that direction; without any, all is allowed."""
    if pod.labels is None:
        return True
    about = closing(policies, direction, pod)
    return not about or any(
        _has_peer(rule, direction, namespace, other) and _has_port(rule.ports, target, port)
        for policy in about
        for rule in rules(policy, direction)
    )


def closing(policies: Sequence[NetworkPolicy], direction: Direction, pod: End) -> list[NetworkPolicy]:
    """The policies because of which only what is allowed gets through; none: everything does."""
    labels = dict(pod.labels or {})
    return [each for each in policies if each.spec.is_about(direction) and each.spec.pod_selector.matches(labels)]


def rules(policy: NetworkPolicy, direction: Direction) -> tuple[PolicyRule, ...]:
    """What it allows."""
    return policy.spec.ingress if direction == "Ingress" else policy.spec.egress


def peers(rule: PolicyRule, direction: Direction) -> tuple[Peer, ...]:
    """Who is at the other end; nobody named: anybody."""
    return rule.peers_from if direction == "Ingress" else rule.peers_to


def _has_peer(rule: PolicyRule, direction: Direction, namespace: str, other: End) -> bool:
    named = peers(rule, direction)
    return not named or any(is_peer(peer, namespace, other) for peer in named)


def is_peer(peer: Peer, namespace: str, other: End) -> bool:
    """Whether a peer of a rule means this end."""
    if peer.ip_block is not None:
        address = ipaddress.ip_address(other.address)
        inside = address in ipaddress.ip_network(peer.ip_block.cidr)
        return inside and not any(address in ipaddress.ip_network(cidr) for cidr in peer.ip_block.exclude)
    if other.labels is None:
        return False
    in_namespace = {"kubernetes.io/metadata.name": namespace}
    if peer.namespace_selector is not None and not peer.namespace_selector.matches(in_namespace):
        return False
    return peer.pod_selector is None or peer.pod_selector.matches(dict(other.labels))


def _has_port(ports: Sequence[PolicyPort], target: End, port: int) -> bool:
    return not ports or any(first <= port <= last for each in ports for first, last in numbers(each, target))


def numbers(port: PolicyPort, target: End) -> list[tuple[int, int]]:
    """The ranges that a port of a rule means at `target`; a name that it has no port of means none."""
    if port.protocol != "TCP":
        return []
    if port.port is None:
        return [(0, 65535)]
    if isinstance(port.port, str):
        named = target.ports.get(port.port)
        return [] if named is None else [(named, named)]
    return [(port.port, port.end_port or port.port)]
