"""NetworkPolicies as nft rules of one pod's network namespace."""

from collections.abc import Iterator, Sequence

from openrl.cluster.manifests import NetworkPolicy, PolicyPort, PolicyRule
from openrl.cluster.policies import Direction, End, closing, is_peer, numbers, peers, rules

_TABLE = """
table inet openrl
delete table inet openrl
table inet openrl {{
    chain input {{
        type filter hook input priority 0; policy {ingress};
        iif "lo" accept
        ct state established,related accept
        ip saddr {node} accept
{inwards}
    }}
    chain output {{
        type filter hook output priority 0; policy {egress};
        oif "lo" accept
        ct state established,related accept
        ip daddr {services} accept
{outwards}
    }}
}}
"""


_NOBODY = End("")


def nft_rules(
    policies: Sequence[NetworkPolicy], namespace: str, pod: End, others: Sequence[End], node: str, services: str
) -> str:
    """For `nft -f`, whatever was there before.

    The node gets in, as it does for probes, and Services can be reached: who may use one is asked by its balancer,
    which knows the ends (`is_allowed`). All else is dropped unless a policy allows it or none is about this pod.
    """
    return _TABLE.format(
        ingress="drop" if closing(policies, "Ingress", pod) else "accept",
        egress="drop" if closing(policies, "Egress", pod) else "accept",
        node=node,
        services=services,
        inwards=_lines(policies, namespace, "Ingress", pod, others),
        outwards=_lines(policies, namespace, "Egress", pod, others),
    )


def _lines(
    policies: Sequence[NetworkPolicy], namespace: str, direction: Direction, pod: End, others: Sequence[End]
) -> str:
    """One line for each peer and port of the rules."""
    lines = {
        f"{who}{port} accept"
        for policy in closing(policies, direction, pod)
        for rule in rules(policy, direction)
        for who, target in _peers(rule, direction, namespace, pod, others)
        for port in _ports(rule.ports, target)
    }
    return "\n".join(f"        {line}" for line in sorted(lines))


def _peers(
    rule: PolicyRule, direction: Direction, namespace: str, pod: End, others: Sequence[End]
) -> Iterator[tuple[str, End]]:
    """What an address must match, and whose ports are meant."""
    word = "saddr" if direction == "Ingress" else "daddr"
    named = peers(rule, direction)
    if not named:
        yield "", pod if direction == "Ingress" else _NOBODY
    for peer in named:
        if block := peer.ip_block:
            but = "".join(f"ip {word} != {cidr} " for cidr in block.exclude)
            yield f"{but}ip {word} {block.cidr} ", pod if direction == "Ingress" else _NOBODY
            continue
        for other in others:
            if is_peer(peer, namespace, other):
                yield f"ip {word} {other.address} ", pod if direction == "Ingress" else other
    if not named and direction == "Egress":
        for other in others:  # for ports that are given by name
            yield f"ip {word} {other.address} ", other


def _ports(ports: Sequence[PolicyPort], target: End) -> Iterator[str]:
    if not ports:
        yield "meta l4proto { tcp, udp, icmp }"
    for port in ports:
        if port.protocol == "UDP" and isinstance(port.port, int):
            yield f"udp dport {port.port}"
        for first, last in numbers(port, target):
            yield f"tcp dport {first}-{last}" if first != last else f"tcp dport {first}"
