"""Makes a pod's volumes: directories of this machine."""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from openrl.cluster.manifests import Manifests
from openrl.cluster.plans import PodPlan
from openrl.cluster.pod_spec import ConfigMapVolume, Container, DownwardVolume, Item, Volume, VolumeMount
from openrl.cluster.values import Place, expand, field_of, values_of
from openrl.errors import InvalidRequest

Rewrite = Callable[[str], str]


@dataclass(frozen=True, slots=True)
class Mount:
    """A directory or file of this machine, and where a container sees it."""

    source: Path
    target: str
    read_only: bool


@dataclass(frozen=True, slots=True)
class Owner:
    """Whose the files are. None: whoever runs this."""

    user: int | None
    group: int | None

    def take(self, path: Path, mode: int) -> None:
        """Give them the file or directory."""
        path.chmod(mode)
        if os.geteuid() == 0 and (self.user is not None or self.group is not None):
            os.chown(path, -1 if self.user is None else self.user, -1 if self.group is None else self.group)


def owner_of(plan: PodPlan, container: Container) -> Owner:
    """The container's user, and the group of the pod's volumes."""
    pod, own = plan.spec.security_context, container.security_context
    user = own.run_as_user if own.run_as_user is not None else pod.run_as_user
    group = own.run_as_group if own.run_as_group is not None else pod.run_as_group
    return Owner(user, pod.fs_group if pod.fs_group is not None else group)


def make_volumes(plan: PodPlan, place: Place, manifests: Manifests, directory: Path) -> dict[str, Path]:
    """Where each volume lies. What is empty at first is in `directory`/pods, claims outlive their pods."""
    owner = owner_of(plan, plan.spec.containers[0])
    own = directory / "pods" / plan.name / "volumes"
    own.mkdir(parents=True, exist_ok=True)
    volumes: dict[str, Path] = {}
    for volume in plan.spec.volumes:
        if volume.host_path is not None:
            volumes[volume.name] = Path(volume.host_path.path)
            continue
        claim = volume.persistent_volume_claim
        path = own / volume.name if claim is None else directory / "claims" / claim.claim_name
        if path.is_symlink():  # somebody's own directory: it stays as it is
            volumes[volume.name] = path.resolve()
            continue
        path.mkdir(parents=True, exist_ok=True)
        owner.take(path, 0o770 if claim is not None or owner.user is not None else 0o700)
        for name, data in _files(volume, plan, place, manifests).items():
            _write(path, name, data, owner)
        volumes[volume.name] = path
    return volumes


def mounts_of(container: Container, volumes: Mapping[str, Path], env: Mapping[str, str]) -> list[Mount]:
    """What the container sees where, outer directories first."""
    mounts: list[Mount] = []
    for mount in container.volume_mounts:
        if mount.name not in volumes:
            raise InvalidRequest(f"container {container.name!r} mounts {mount.name!r}, which is no volume of its pod")
        source = volumes[mount.name] / _sub_path(mount, env)
        if mount.sub_path_expr or (mount.sub_path and not source.exists()):
            source.mkdir(parents=True, exist_ok=True)
        mounts.append(Mount(source, mount.mount_path.rstrip("/") or "/", mount.read_only))
    return sorted(mounts, key=lambda each: each.target)


def rewrite_files(directory: Path, rewrite: Rewrite) -> None:
    """Put other names and paths into text files; others stay as they are."""
    for path in sorted(directory.rglob("*")):
        if path.is_file():
            try:
                text = path.read_text()
            except UnicodeDecodeError:
                continue
            if (changed := rewrite(text)) != text:
                path.write_text(changed)


def _sub_path(mount: VolumeMount, env: Mapping[str, str]) -> str:
    path = expand(mount.sub_path_expr, env) if mount.sub_path_expr else mount.sub_path
    if path.startswith("/") or ".." in Path(path).parts:
        raise InvalidRequest(f"sub-path {path!r} leaves its volume", value=path)
    return path


def _files(volume: Volume, plan: PodPlan, place: Place, manifests: Manifests) -> dict[str, bytes]:
    if volume.config_map:
        return _picked("ConfigMap", volume.config_map, manifests, plan)
    if volume.secret:
        secret = volume.secret
        ref = ConfigMapVolume(name=secret.secret_name, items=secret.items, optional=secret.optional)
        return _picked("Secret", ref, manifests, plan)
    if volume.downward_api:
        return _downward(volume.downward_api, plan, place)
    files: dict[str, bytes] = {}
    for source in volume.projected.sources if volume.projected else ():
        if source.config_map:
            files |= _picked("ConfigMap", source.config_map, manifests, plan)
        if source.secret:
            files |= _picked("Secret", source.secret, manifests, plan)
        if source.downward_api:
            files |= _downward(source.downward_api, plan, place)
    return files


def _downward(volume: DownwardVolume, plan: PodPlan, place: Place) -> dict[str, bytes]:
    return {
        item.path: field_of(plan, place, item.field_ref.field_path).encode()
        for item in volume.items
        if item.field_ref is not None
    }


def _picked(kind: str, ref: ConfigMapVolume, manifests: Manifests, plan: PodPlan) -> dict[str, bytes]:
    objects = manifests.config_maps if kind == "ConfigMap" else manifests.secrets
    values = values_of(objects, kind, ref.name, optional=ref.optional, whose=plan.name)
    items = ref.items or tuple(Item(key=key, path=key) for key in values)
    if missing := [item.key for item in items if item.key not in values and not ref.optional]:
        raise InvalidRequest(f"{plan.name} needs key {missing[0]!r} of {kind} {ref.name!r}, which has no such key")
    return {item.path: values[item.key] for item in items if item.key in values}


def _write(directory: Path, name: str, data: bytes, owner: Owner) -> None:
    path = directory / name
    if not path.resolve().is_relative_to(directory.resolve()):
        raise InvalidRequest(f"file name {name!r} leaves its volume", value=name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    owner.take(path, 0o440)
