"""Resolves a pod's plan: what each container runs, with which variables and files."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from openrl.cluster.gpus import GpuPool
from openrl.cluster.images import command_of, image_environment, known_user, runs_as_root, stop_signal
from openrl.cluster.manifests import Manifests
from openrl.cluster.networks import Network
from openrl.cluster.plans import PodPlan
from openrl.cluster.pod_runner import PodParts
from openrl.cluster.pod_spec import Container
from openrl.cluster.programs import Program
from openrl.cluster.values import Place, environment_of, expand
from openrl.cluster.volumes import make_volumes, mounts_of, owner_of, rewrite_files


@dataclass(frozen=True, slots=True)
class Machine:
    """What all pods are made from."""

    manifests: Manifests
    network: Network
    namespace: str
    directory: Path
    outside: Mapping[str, str]  # environment of this process
    gpus: GpuPool


def resolve(plan: PodPlan, address: str, machine: Machine) -> PodParts:
    """Make its volumes and find its values. Raises InvalidRequest for what is not there."""
    if not machine.network.can_separate:
        plan = _with_known_users(plan)
    place = Place(machine.namespace, address, machine.network.host_address)
    volumes = make_volumes(plan, place, machine.manifests, machine.directory)
    containers = (*plan.spec.init_containers, *plan.spec.containers)
    paths = {mount.mount_path.rstrip("/"): volumes[mount.name] for each in containers for mount in each.volume_mounts}
    rewrite = machine.network.rewriting(address, {target: str(source) for target, source in paths.items()})
    if rewrite is not None:
        for volume in plan.spec.volumes:
            if volume.host_path is None and volume.persistent_volume_claim is None:
                rewrite_files(volumes[volume.name], rewrite)
    programs = {each.name: _program(each, plan, place, volumes, machine) for each in containers}
    return PodParts(plan, address, programs)


def _with_known_users(plan: PodPlan) -> PodPlan:
    context = plan.spec.security_context
    if context.run_as_user is None:
        return plan
    known = context.model_copy(update={"run_as_user": known_user(context.run_as_user)})
    return replace(plan, spec=plan.spec.model_copy(update={"security_context": known}))


def _program(
    container: Container, plan: PodPlan, place: Place, volumes: Mapping[str, Path], machine: Machine
) -> Program:
    own = environment_of(container, plan, place, machine.manifests)
    own |= machine.gpus.take(f"{plan.name}/{container.name}", container)
    owner = owner_of(plan, container)
    group = container.security_context.run_as_group or plan.spec.security_context.run_as_group
    # Its program is found as the image would: by name, among those of this installation.
    return Program(
        argv=tuple(expand(word, own) for word in command_of(container)),
        env={**image_environment(machine.outside), **own},
        working_dir=container.working_dir,
        mounts=tuple(mounts_of(container, volumes, own)),
        user=owner.user if os.geteuid() == 0 else None,
        group=group,
        volumes_group=owner.group,
        may_be_root=runs_as_root(container),
        stop_signal=stop_signal(container),
        is_root_read_only=container.security_context.read_only_root_filesystem,
    )
