"""Services of an installation: their addresses, the names of everything, who may talk to whom."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from openrl.cluster.balancer import Backend, Balancer
from openrl.cluster.firewall import nft_rules
from openrl.cluster.manifests import Manifests, Service, ServicePort
from openrl.cluster.names import dns_names
from openrl.cluster.networks import Network, prefix_of
from openrl.cluster.plans import PodPlan
from openrl.cluster.pod_runner import PodRunner
from openrl.cluster.pod_spec import Container
from openrl.cluster.policies import End, is_allowed


@dataclass(slots=True)
class Services:
    """`pods` and `plans` are the cluster's own dicts: what is in them is what there is."""

    manifests: Manifests
    network: Network
    namespace: str
    plans: Mapping[str, tuple[PodPlan, str]]  # with addresses, by name
    pods: Mapping[str, PodRunner]
    addresses: dict[str, str] = field(default_factory=dict[str, str])  # by name of the Service
    refused: list[str] = field(default_factory=list[str])  # what could not be listened on, for people
    _balancers: list[Balancer] = field(default_factory=list[Balancer])

    async def open(self) -> None:
        """Give every Service an address, and listen there unless its name stands for the pods themselves."""
        for service in self.manifests.services:
            name = service.metadata.name
            self.addresses[name] = await self.network.add_service()
            if service.is_headless and self.network.can_separate:
                continue
            for port in service.spec.ports:
                number = self._target(service, port) if service.is_headless else port.port
                try:
                    await self.publish(service, port, self.addresses[name], number)
                except PermissionError:
                    self.refused.append(f"{name}:{number} needs root; it is not there")

    async def publish(self, service: Service, port: ServicePort, address: str, number: int) -> int:
        """Answer for a Service's port at an address too; returns the port."""
        balancer = Balancer(lambda client: self.backends(service, port, client))
        self._balancers.append(balancer)
        return await balancer.start(address, number)

    async def close(self) -> None:
        """Cut all connections."""
        for balancer in self._balancers:
            await balancer.stop()

    def backends(self, service: Service, port: ServicePort, client: str) -> list[Backend]:
        """Where a client's connection may go: to pods that are ready, and that policies let it talk to."""
        found: list[Backend] = []
        source = self._end_at(client)
        for pod in self._chosen(service):
            number = _number(pod.plan, port)
            target = end_of(pod.plan, pod.address)
            if self._is_open(source, target, number):
                found.append((pod.address, number))
        return found

    def names(self) -> dict[str, tuple[str, ...]]:
        """What every name stands for at the moment."""
        names: dict[str, tuple[str, ...]] = {}
        for service in self.manifests.services:
            name = service.metadata.name
            addresses: tuple[str, ...] = (self.addresses[name],)
            if service.is_headless and self.network.can_separate:
                addresses = tuple(pod.address for pod in self._chosen(service))
            names |= dict.fromkeys(dns_names(name, self.namespace), addresses)
        for plan, address in self.plans.values():
            for name in plan.dns_names:
                names |= dict.fromkeys(dns_names(name, self.namespace), (address,))
        return names

    def rules(self) -> dict[str, str]:
        """nft rules, by address of the pod."""
        ends = {address: end_of(plan, address) for plan, address in self.plans.values()}
        services = prefix_of(list(self.addresses.values()))
        return {
            address: nft_rules(
                self.manifests.policies,
                self.namespace,
                end,
                [other for other in ends.values() if other is not end],
                self.network.host_address,
                services,
            )
            for address, end in ends.items()
        }

    def _is_open(self, source: End, target: End, port: int) -> bool:
        """The machine itself may, and everybody where clients have no addresses of their own."""
        is_machine = source.address == self.network.host_address or source.address.startswith("127.")
        if is_machine or not self.network.can_separate:
            return True
        return is_allowed(self.manifests.policies, self.namespace, source, target, port)

    def _chosen(self, service: Service) -> list[PodRunner]:
        unready_too = service.spec.publish_not_ready_addresses
        return [
            pod
            for pod in self.pods.values()
            if (pod.is_ready or (unready_too and not pod.is_over))
            and service.spec.selector
            and service.spec.selector.items() <= pod.plan.metadata.labels.items()
        ]

    def _end_at(self, address: str) -> End:
        for plan, own in self.plans.values():
            if own == address:
                return end_of(plan, own)
        return End(address)

    def _target(self, service: Service, port: ServicePort) -> int:
        for plan, _ in self.plans.values():
            if service.spec.selector.items() <= plan.metadata.labels.items():
                return _number(plan, port)
        return port.port


def end_of(plan: PodPlan, address: str) -> End:
    """A pod as an end of connections."""
    ports = {port.name: port.container_port for each in plan.spec.containers for port in each.ports if port.name}
    return End(address, plan.metadata.labels, ports)


def find_service(services: Iterable[Service], component: str) -> Service | None:
    """The Service in front of the pods of a component."""
    label = "app.kubernetes.io/component"
    return next(
        (each for each in services if each.spec.selector.get(label) == component and not each.is_headless), None
    )


def _number(plan: PodPlan, port: ServicePort) -> int:
    target = port.target_port or port.port
    containers: Sequence[Container] = plan.spec.containers
    named = (each.container_port for one in containers for each in one.ports if each.name == target)
    return target if isinstance(target, int) else next(named, port.port)
