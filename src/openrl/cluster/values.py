"""Finds what manifests refer to: keys of ConfigMaps and Secrets, fields of the pod, `$(NAME)`."""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from openrl.cluster.manifests import ConfigMap, Manifests, Secret
from openrl.cluster.plans import PodPlan
from openrl.cluster.pod_spec import Container, EnvSource, EnvVar, KeyRef
from openrl.errors import InvalidRequest

_REFERENCE = re.compile(r"\$\$|\$\(([^()$\s]+)\)")
_SUFFIXES = {"Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40, "k": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}


@dataclass(frozen=True, slots=True)
class Place:
    """Where a pod is."""

    namespace: str
    address: str
    host_address: str


def expand(text: str, env: Mapping[str, str]) -> str:
    """`$(NAME)` becomes the variable's value where there is one, `$$` a dollar."""

    def _replace(found: re.Match[str]) -> str:
        if found[0] == "$$":
            return "$"
        return env.get(found[1], found[0])

    return _REFERENCE.sub(_replace, text)


def environment_of(container: Container, plan: PodPlan, place: Place, manifests: Manifests) -> dict[str, str]:
    """A container's own variables, later ones over earlier ones. Raises InvalidRequest for what is not there."""
    env: dict[str, str] = {}
    for source in container.env_from:
        if ref := source.config_map_ref:
            found = values_of(manifests.config_maps, "ConfigMap", ref.name, optional=ref.optional, whose=plan.name)
            env |= {source.prefix + key: value.decode() for key, value in found.items()}
        if ref := source.secret_ref:
            found = values_of(manifests.secrets, "Secret", ref.name, optional=ref.optional, whose=plan.name)
            env |= {source.prefix + key: value.decode() for key, value in found.items()}
    env |= plan.added_env
    for variable in container.env:
        value = _value(variable, container, plan, place, manifests, env)
        if value is not None:
            env[variable.name] = value
    return env


def _value(
    variable: EnvVar, container: Container, plan: PodPlan, place: Place, manifests: Manifests, env: Mapping[str, str]
) -> str | None:
    """None: an optional reference to what is not there."""
    match variable.value_from:
        case None:
            return expand(variable.value, env)
        case EnvSource(config_map_key_ref=KeyRef() as ref):
            return _key(manifests.config_maps, "ConfigMap", ref, plan.name)
        case EnvSource(secret_key_ref=KeyRef() as ref):
            return _key(manifests.secrets, "Secret", ref, plan.name)
        case EnvSource(field_ref=field) if field is not None:
            return field_of(plan, place, field.field_path)
        case EnvSource(resource_field_ref=resource) if resource is not None:
            kind, _, name = resource.resource.partition(".")
            quantities = container.resources.limits if kind == "limits" else container.resources.requests
            return str(quantity(quantities.get(name, 0)))
        case _:
            raise InvalidRequest(f"{plan.name}: variable {variable.name} has a source that cannot be read here")


def field_of(plan: PodPlan, place: Place, path: str) -> str:
    """A field of the pod, as the downward API names it."""
    found = re.fullmatch(r"metadata\.(labels|annotations)\['([^']+)'\]", path)
    if found:
        values = plan.metadata.labels if found[1] == "labels" else plan.metadata.annotations
        return values.get(found[2], "")
    fields = {
        "metadata.name": plan.name,
        "metadata.namespace": place.namespace,
        "metadata.uid": plan.uid,
        "spec.nodeName": "this-machine",
        "spec.serviceAccountName": plan.spec.service_account_name,
        "status.hostIP": place.host_address,
        "status.podIP": place.address,
        "status.podIPs": place.address,
    }
    if path not in fields:
        raise InvalidRequest(f"{plan.name}: field {path!r} is not known here", value=path)
    return fields[path]


def _key(objects: Mapping[str, ConfigMap | Secret], kind: str, ref: KeyRef, whose: str) -> str | None:
    values = values_of(objects, kind, ref.name, optional=ref.optional, whose=whose)
    if ref.key in values:
        return values[ref.key].decode()
    if ref.optional:
        return None
    raise InvalidRequest(f"{whose} needs key {ref.key!r} of {kind} {ref.name!r}, which has no such key")


def values_of(
    objects: Mapping[str, ConfigMap | Secret], kind: str, name: str, *, optional: bool, whose: str
) -> dict[str, bytes]:
    """An object's values; empty if it is not there and optional."""
    if name in objects:
        return objects[name].values()
    if optional:
        return {}
    raise InvalidRequest(
        f"{whose} needs {kind} {name!r}, which none of the manifests has; give it by --manifests FILE", value=name
    )


def quantity(written: str | int | float) -> int:
    """A resource quantity as a whole number: "1500m" is 2, "2Gi" is 2 * 2**30."""
    if isinstance(written, int | float):
        return -int(-written // 1)
    found = re.fullmatch(r"([0-9.]+)(m|Ki|Mi|Gi|Ti|k|M|G|T)?", written)
    if not found:
        raise InvalidRequest(f"quantity {written!r} cannot be read", value=written)
    number = float(found[1])
    scaled = number / 1000 if found[2] == "m" else number * _SUFFIXES.get(found[2] or "", 1)
    return -int(-scaled // 1)
