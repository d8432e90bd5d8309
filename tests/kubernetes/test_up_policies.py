"""Which connections NetworkPolicies allow, asked of the decision and of the nft rules that are made from them."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from openrl.cluster.firewall import nft_rules
from openrl.cluster.manifests import NetworkPolicy, read_manifests
from openrl.cluster.policies import End, is_allowed

NODE = "10.231.7.1"
ENDS = {
    name: End(f"10.231.7.{number}", {"app": name, "tier": tier}, {"http": 8000, "rpc": 7600})
    for number, (name, tier) in enumerate({"gateway": "front", "worker": "back", "other": "back"}.items(), start=10)
}
OUTSIDE = End("192.0.2.7")


def policy(spec: str) -> NetworkPolicy:
    (found,) = read_manifests([f"{{kind: NetworkPolicy, metadata: {{name: x}}, spec: {spec}}}"]).policies
    return found


def allowed(policies: list[NetworkPolicy], source: End, target: End, port: int) -> bool:
    """By the decision; the rules of both ends must say the same."""
    decided = is_allowed(policies, "team", source, target, port)
    ends = list(ENDS.values())
    out = source.labels is None or _passes(_rules(policies, source, ends), "output", target.address, port)
    into = target.labels is None or _passes(_rules(policies, target, ends), "input", source.address, port)
    assert decided == (out and into), (policies, source, target, port)
    return decided


def _rules(policies: list[NetworkPolicy], end: End, ends: list[End]) -> str:
    others = [each for each in ends if each is not end]
    return nft_rules(policies, "team", end, others, NODE, "{ 10.231.7.200 }")


def _passes(rules: str, chain: str, address: str, port: int) -> bool:
    """What nft would say of a new TCP connection; only the kinds of lines that are made here."""
    (body,) = re.findall(rf"chain {chain} {{(.*?)\n    }}", rules, re.DOTALL)
    for line in body.splitlines():
        words = line.split()
        if not line.strip().endswith("accept") or words[0] in ("ct", "iif", "oif", "type"):
            continue
        hosts = re.findall(r"ip [sd]addr (!= )?(\S+?)(?:/(\d+))? ", line)
        if "{ 10.231.7.200 }" in line:
            continue
        if not all(_in_block(address, block, int(bits or 32)) != bool(negated) for negated, block, bits in hosts):
            continue
        ports = re.search(r"tcp dport (\d+)(?:-(\d+))?", line)
        if "udp dport" in line or (ports and not int(ports[1]) <= port <= int(ports[2] or ports[1])):
            continue
        return True
    return "policy accept" in body


def _in_block(address: str, block: str, bits: int) -> bool:
    def _number(text: str) -> int:
        a, b, c, d = map(int, text.split("."))
        return (a << 24 | b << 16 | c << 8 | d) >> (32 - bits) if bits else 0

    return _number(address) == _number(block)


def test_without_policies_all_may_talk():
    assert allowed([], ENDS["gateway"], ENDS["worker"], 1)


def test_a_policy_closes_only_what_it_is_about():
    closed = [policy("{podSelector: {matchLabels: {app: worker}}}")]
    assert not allowed(closed, ENDS["gateway"], ENDS["worker"], 8000)
    assert allowed(closed, ENDS["worker"], ENDS["gateway"], 8000)
    assert allowed(closed, ENDS["gateway"], ENDS["other"], 8000)


def test_selectors_ports_and_names_of_ports():
    rule = "{from: [{podSelector: {matchLabels: {tier: front}}}], ports: [{port: rpc}, {port: 90, endPort: 99}]}"
    policies = [policy(f"{{podSelector: {{matchLabels: {{app: worker}}}}, ingress: [{rule}]}}")]
    for port, expected in {7600: True, 8000: False, 90: True, 95: True, 100: False}.items():
        assert allowed(policies, ENDS["gateway"], ENDS["worker"], port) == expected
    assert not allowed(policies, ENDS["other"], ENDS["worker"], 7600)
    assert not allowed(policies, OUTSIDE, ENDS["worker"], 7600)


def test_outwards_too():
    policies = [
        policy("{podSelector: {}, policyTypes: [Egress], egress: [{to: [{podSelector: {}}], ports: [{port: http}]}]}")
    ]
    assert allowed(policies, ENDS["gateway"], ENDS["worker"], 8000)
    assert not allowed(policies, ENDS["gateway"], ENDS["worker"], 7600)
    assert not allowed(policies, ENDS["gateway"], OUTSIDE, 8000)
    assert allowed(policies, OUTSIDE, ENDS["worker"], 7600)


def test_addresses_and_what_they_leave_out():
    block = "{ipBlock: {cidr: 192.0.2.0/24, except: [192.0.2.128/25]}}"
    policies = [policy(f"{{podSelector: {{}}, ingress: [{{from: [{block}]}}]}}")]
    assert allowed(policies, OUTSIDE, ENDS["worker"], 1)
    assert not allowed(policies, End("192.0.2.200"), ENDS["worker"], 1)
    assert not allowed(policies, ENDS["gateway"], ENDS["worker"], 1)


def test_other_namespaces_are_not_here():
    here = "{namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: team}}}"
    there = "{namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: monitoring}}}"
    for peer, expected in {here: True, there: False}.items():
        policies = [policy(f"{{podSelector: {{}}, ingress: [{{from: [{peer}]}}]}}")]
        assert allowed(policies, ENDS["gateway"], ENDS["worker"], 8000) == expected


SELECTORS = st.sampled_from(
    (
        "{}",
        "{matchLabels: {app: worker}}",
        "{matchLabels: {tier: back}}",
        "{matchExpressions: [{key: app, operator: In, values: [gateway, worker]}]}",
        "{matchExpressions: [{key: app, operator: NotIn, values: [other]}, {key: tier, operator: Exists}]}",
        "{matchExpressions: [{key: none, operator: DoesNotExist}]}",
    )
)
PEERS = st.one_of(
    SELECTORS.map("{{podSelector: {}}}".format),
    st.sampled_from(["{ipBlock: {cidr: 10.231.7.0/28}}", "{ipBlock: {cidr: 0.0.0.0/0, except: [10.231.7.12/32]}}"]),
)
PORTS = st.sampled_from(
    [
        "{port: http}",
        "{port: rpc, protocol: TCP}",
        "{port: 8000}",
        "{port: 7000, endPort: 7999}",
        "{protocol: UDP, port: 53}",
    ]
)


@st.composite
def policies_of(draw: st.DrawFn) -> NetworkPolicy:
    def _rule(word: str) -> str:
        parts: list[str] = []
        if peers := draw(st.lists(PEERS, max_size=2)):
            parts.append(f"{word}: [{', '.join(peers)}]")
        if ports := draw(st.lists(PORTS, max_size=2)):
            parts.append(f"ports: [{', '.join(ports)}]")
        return f"{{{', '.join(parts)}}}"

    types = draw(
        st.sampled_from(["", "policyTypes: [Ingress], ", "policyTypes: [Egress], ", "policyTypes: [Ingress, Egress], "])
    )
    ingress = ", ".join(_rule("from") for _ in range(draw(st.integers(0, 2))))
    egress = ", ".join(_rule("to") for _ in range(draw(st.integers(0, 2))))
    return policy(f"{{podSelector: {draw(SELECTORS)}, {types}ingress: [{ingress}], egress: [{egress}]}}")


@given(
    st.lists(policies_of(), max_size=3),
    st.sampled_from([*ENDS.values(), OUTSIDE]),
    st.sampled_from([*ENDS.values(), OUTSIDE]),
    st.sampled_from([8000, 7600, 53, 443]),
)
def test_the_rules_of_both_ends_say_what_the_decision_says(
    policies: list[NetworkPolicy], source: End, target: End, port: int
):
    if source is not target and source.address != target.address:
        allowed(policies, source, target, port)


def test_a_rule_that_cannot_be_read_is_refused():
    with pytest.raises(Exception, match="operator"):
        policy("{podSelector: {matchExpressions: [{key: a, operator: Near}]}}")
