"""Where pods and Services of one machine have their addresses."""

import asyncio
import shutil
import socket
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path

from openrl.cluster.names import hosts_file
from openrl.cluster.programs import Program, Rewriting, Spawn, plain_spawn
from openrl.cluster.sandbox import mount_points, sandboxed
from openrl.errors import Unavailable

FIRST_POD, LAST_POD = 10, 199
FIRST_SERVICE, LAST_SERVICE = 200, 250
_NUMBERS = range(7, 250)
_CLAIM_PORT = 7599


class Network(ABC):
    """Addresses PREFIX.N: 1 is the machine, then pods, then Services. `close` gives everything back."""

    can_separate = False
    """Whether pods see only what is theirs: names, files, who may talk to whom."""

    def __init__(self) -> None:
        self.number, self._claim = claim_number()
        self.num_pods = 0
        self.num_services = 0

    @property
    @abstractmethod
    def prefix(self) -> str:
        """The first three numbers of all addresses."""

    @property
    def host_address(self) -> str:
        """The machine's own."""
        return f"{self.prefix}.1"

    @abstractmethod
    async def open(self) -> None:
        """Make what all pods share."""

    async def add_pod(self) -> str:
        """An address of its own for a pod."""
        self.num_pods += 1
        if FIRST_POD + self.num_pods - 1 > LAST_POD:
            raise Unavailable(f"one machine runs at most {LAST_POD - FIRST_POD + 1} pods in its lifetime here")
        return f"{self.prefix}.{FIRST_POD + self.num_pods - 1}"

    async def add_service(self) -> str:
        """An address on which this process can listen."""
        self.num_services += 1
        if FIRST_SERVICE + self.num_services - 1 > LAST_SERVICE:
            raise Unavailable(f"one machine has at most {LAST_SERVICE - FIRST_SERVICE + 1} Services here")
        return f"{self.prefix}.{FIRST_SERVICE + self.num_services - 1}"

    @abstractmethod
    def spawn(self, program: Program, address: str, directory: Path) -> Spawn:
        """What starts a pod's program. `directory` is the container's own."""

    @abstractmethod
    def set_names(self, names: Mapping[str, tuple[str, ...]]) -> None:
        """Which names stand for which addresses from here on."""

    @abstractmethod
    def rewriting(self, address: str, paths: Mapping[str, str]) -> Rewriting | None:
        """What texts of a pod's files need; None: they stay as they are."""

    @abstractmethod
    async def set_rules(self, rules: Mapping[str, str]) -> None:
        """nft rules, by address of the pod; nothing where pods are not separate."""

    async def close(self) -> None:
        """Give everything back; processes have ended."""
        self._claim.close()


class Loopback(Network):
    """Pods are plain processes, each with a loopback address; their texts are rewritten. Needs no rights."""

    def __init__(self) -> None:
        super().__init__()
        self._names: Mapping[str, str] = {}

    @property
    def prefix(self) -> str:
        return f"127.0.{self.number}"

    async def open(self) -> None:
        pass  # the addresses are there

    async def set_rules(self, rules: Mapping[str, str]) -> None:
        assert not rules, "nothing tells whose a connection is"

    def set_names(self, names: Mapping[str, tuple[str, ...]]) -> None:
        self._names = {name: addresses[0] for name, addresses in names.items() if addresses}

    def rewriting(self, address: str, paths: Mapping[str, str]) -> Rewriting:
        own = dict.fromkeys(("0.0.0.0", "127.0.0.1", "localhost"), address)  # noqa: S104  (it is replaced)
        return Rewriting({**self._names, **own}, paths)

    def spawn(self, program: Program, address: str, directory: Path) -> Spawn:
        del directory
        return plain_spawn(program, self.rewriting(address, {}))


class Namespaces(Network):
    """Pods have network namespaces behind one bridge, and see their mounts where their manifests say. Needs root."""

    can_separate = True

    def __init__(self, directory: Path) -> None:
        super().__init__()
        self._hosts = directory / "hosts"
        self._hosts.parent.mkdir(parents=True, exist_ok=True)
        self._hosts.touch()
        self._namespaces: dict[str, str] = {}  # by address
        self.bridge = f"orl{self.number}"

    @property
    def prefix(self) -> str:
        return f"10.231.{self.number}"

    async def open(self) -> None:
        if missing := [each for each in ("ip", "nft", "nsenter", "unshare", "chroot") if shutil.which(each) is None]:
            raise Unavailable(
                f"pods in network namespaces need {', '.join(missing)}; install it, or go without --netns"
            )
        await self._remove()  # what an earlier process with this number could not take away
        await run("ip", "link", "add", self.bridge, "type", "bridge")
        await run("ip", "addr", "add", f"{self.host_address}/24", "dev", self.bridge)
        await run("ip", "link", "set", self.bridge, "up")

    async def add_pod(self) -> str:
        address = await super().add_pod()
        name = f"{self.bridge}-{self.num_pods}"
        outer = f"{name}h"
        self._namespaces[address] = name
        await run("ip", "netns", "add", name)
        await run("ip", "link", "add", outer, "type", "veth", "peer", "name", "eth0", "netns", name)
        await run("ip", "link", "set", outer, "master", self.bridge, "up")
        await run("ip", "-n", name, "addr", "add", f"{address}/24", "dev", "eth0")
        for device in ("lo", "eth0"):
            await run("ip", "-n", name, "link", "set", device, "up")
        return address

    async def add_service(self) -> str:
        address = await super().add_service()
        await run("ip", "addr", "add", f"{address}/24", "dev", self.bridge)
        return address

    def namespace(self, address: str) -> str:
        """The name of a pod's network namespace, for `ip netns exec`."""
        return self._namespaces[address]

    async def set_link(self, address: str, *, up: bool) -> None:
        """Cut a pod from the network, or bring it back."""
        await run("ip", "link", "set", f"{self._namespaces[address]}h", "up" if up else "down")

    def set_names(self, names: Mapping[str, tuple[str, ...]]) -> None:
        # Pods have this very file mounted: it is changed, never replaced, and never empty for a reader.
        with self._hosts.open("r+") as file:
            if file.read() != (text := hosts_file(names)):
                file.seek(0)
                file.write(text)
                file.truncate()

    def rewriting(self, address: str, paths: Mapping[str, str]) -> None:
        del address, paths

    def spawn(self, program: Program, address: str, directory: Path) -> Spawn:
        root = directory / "root"
        root.mkdir(parents=True, exist_ok=True)
        points = mount_points(Path("/proc/self/mountinfo").read_text())
        return sandboxed(program, self._namespaces[address], root, self._hosts, points)

    async def set_rules(self, rules: Mapping[str, str]) -> None:
        for address, text in rules.items():
            await run("ip", "netns", "exec", self._namespaces[address], "nft", "-f", "-", stdin=text)

    async def close(self) -> None:
        await self._remove()
        await super().close()

    async def _remove(self) -> None:
        listing = await run("ip", "netns", "list")
        for name in (line.split()[0] for line in listing.splitlines() if line.strip()):
            if name.startswith(f"{self.bridge}-"):
                await run("ip", "netns", "delete", name)
        links = await run("ip", "-o", "link", "show", "type", "bridge")
        if any(line.split()[1].startswith(f"{self.bridge}:") for line in links.splitlines()):
            await run("ip", "link", "delete", self.bridge)


def claim_number() -> tuple[int, socket.socket]:
    """The first number that no other process on this machine has, and what holds it until it is closed."""
    for number in _NUMBERS:
        holder = socket.socket()
        try:
            holder.bind((f"127.0.{number}.1", _CLAIM_PORT))
        except OSError:
            holder.close()
            continue
        holder.listen(1)
        return number, holder
    raise Unavailable("this machine runs too many clusters already")


async def run(*argv: str, stdin: str = "") -> str:
    """A command's output; raises Unavailable with what it complained of."""
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(*argv, stdin=pipe, stdout=pipe, stderr=pipe)
    output, complaint = await process.communicate(stdin.encode())
    if process.returncode != 0:
        raise Unavailable(f"{' '.join(argv)}: {complaint.decode().strip()}")
    return output.decode()


def prefix_of(services: Sequence[str]) -> str:
    """The smallest nft set that has these addresses."""
    return "{ " + ", ".join(sorted(services)) + " }" if services else "255.255.255.255"
