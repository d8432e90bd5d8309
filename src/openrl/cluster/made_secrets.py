"""Makes up the secrets that an installation on one machine needs and nobody has given."""

import base64
import json
import secrets
from collections.abc import Iterator
from pathlib import Path

from openrl.cluster.manifests import LeaderWorkerSet, Manifests, Pod, Runnable, Secret
from openrl.cluster.pod_spec import Metadata, PodSpec

MADE_UP = ("-secret", "-password")
"""Ends of keys that mean nothing outside of the installation: any value is right."""


def add_missing(manifests: Manifests, file: Path) -> list[str]:
    """Add what is missing and can be made up, the same at every start: `file` keeps it. Returns names, for people."""
    kept: dict[str, str] = json.loads(file.read_text()) if file.exists() else {}
    made: list[str] = []
    for name, key in sorted(set(_references(manifests))):
        secret = manifests.secrets.get(name)
        if not key.endswith(MADE_UP) or (secret is not None and key in secret.values()):
            continue
        label = f"{name}/{key}"
        value = kept.setdefault(label, secrets.token_hex(32))
        given = {} if secret is None else secret.data
        encoded = {**given, key: base64.b64encode(value.encode()).decode()}
        plain = {} if secret is None else secret.string_data
        manifests.secrets[name] = Secret(kind="Secret", metadata=Metadata(name=name), data=encoded, string_data=plain)
        made.append(label)
    if made:
        file.touch(mode=0o600)
        file.write_text(json.dumps(kept))
    return made


def _references(manifests: Manifests) -> Iterator[tuple[str, str]]:
    """Keys of Secrets that pods cannot do without."""
    for runnable in manifests.runnables:
        for spec in _specs(runnable):
            for container in (*spec.init_containers, *spec.containers):
                for variable in container.env:
                    ref = variable.value_from.secret_key_ref if variable.value_from else None
                    if ref is not None and not ref.optional:
                        yield ref.name, ref.key
            for volume in spec.volumes:
                if volume.secret is not None and not volume.secret.optional:
                    yield from ((volume.secret.secret_name, item.key) for item in volume.secret.items)


def _specs(runnable: Runnable) -> tuple[PodSpec, ...]:
    match runnable:
        case Pod():
            return (runnable.spec,)
        case LeaderWorkerSet():
            shape = runnable.spec.leader_worker_template
            templates = (shape.worker_template, *([shape.leader_template] if shape.leader_template else []))
            return tuple(each.spec for each in templates)
        case _:
            return (runnable.spec.template.spec,)
