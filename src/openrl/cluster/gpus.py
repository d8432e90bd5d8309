"""Gives the GPUs of one machine to pods, as a device plugin would."""

from collections.abc import Iterable
from pathlib import Path

from openrl.cluster.pod_spec import Container
from openrl.cluster.values import quantity
from openrl.errors import InvalidRequest

VISIBLE = "CUDA_VISIBLE_DEVICES"
_VENDOR = "nvidia.com/"


class GpuPool:
    """Whole GPUs only; parts of one (MIG) are not made here."""

    def __init__(self, numbers: tuple[int, ...]) -> None:
        self._all = numbers
        self._taken: dict[str, tuple[int, ...]] = {}

    def take(self, owner: str, container: Container) -> dict[str, str]:
        """Variables that show a container its GPUs, the same ones while `owner` has them; none if it asks for none."""
        wanted = num_gpus(container)
        if wanted == 0:
            return {}
        if owner not in self._taken:
            taken = {number for numbers in self._taken.values() for number in numbers}
            free = [number for number in self._all if number not in taken]
            if wanted > len(free):
                raise InvalidRequest(
                    f"{owner} asks for {wanted} GPU(s), and {len(free)} of this machine's {len(self._all)} are free"
                )
            self._taken[owner] = tuple(free[:wanted])
        return {VISIBLE: ",".join(map(str, self._taken[owner]))}

    def room_for(self, containers: Iterable[Container]) -> int | None:
        """How many more times these fit; None: they need none."""
        wanted = sum(num_gpus(each) for each in containers)
        free = len(self._all) - sum(len(numbers) for numbers in self._taken.values())
        return free // wanted if wanted else None

    def give_back(self, owner: str) -> None:
        """Its pod is over; `owner` is the pod."""
        for each in [each for each in self._taken if each.partition("/")[0] == owner]:
            del self._taken[each]


def num_gpus(container: Container) -> int:
    """How many it asks for."""
    limits = container.resources.limits
    return sum(quantity(amount) for name, amount in limits.items() if name.startswith(_VENDOR))


def gpus_of_this_machine(devices: Path = Path("/dev")) -> tuple[int, ...]:
    """Their numbers."""
    names = (path.name.removeprefix("nvidia") for path in devices.glob("nvidia[0-9]*"))
    return tuple(sorted(int(name) for name in names if name.isdigit()))
