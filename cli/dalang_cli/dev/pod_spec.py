"""From a Pod's container to what a local process is started with: environment, command line, paths. Pure functions.

There are no mounts without root, so a mounted path is *rewritten*: wherever an environment variable, a command word or an
argument names a path below a `mountPath`, the process gets the local directory instead.
"""

import base64
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

Object = dict[str, Any]

SourceKind = Literal["Secret", "ConfigMap"]
Sources = Callable[[SourceKind, str], Object | None]
"""Returns a Secret or ConfigMap of the pod's namespace by name, or None when there is none."""

Tokens = Callable[[Object], bytes]
"""Returns the service account token of a projection."""


class MissingSource(Exception):
    """A Secret, a ConfigMap or one of its keys is missing, and not optional: the container has to wait."""


@dataclass(frozen=True)
class PodFacts:
    """What `fieldRef` may ask for."""

    name: str
    namespace: str
    uid: str
    ip: str
    node: str
    service_account: str
    labels: Mapping[str, str]
    annotations: Mapping[str, str]

    @classmethod
    def of(cls, pod: Object, ip: str, node: str) -> "PodFacts":
        """Collect the facts of a pod."""
        metadata = pod["metadata"]
        return cls(
            name=metadata["name"],
            namespace=metadata["namespace"],
            uid=metadata["uid"],
            ip=ip,
            node=node,
            service_account=pod["spec"].get("serviceAccountName", "default"),
            labels=metadata.get("labels") or {},
            annotations=metadata.get("annotations") or {},
        )

    def field(self, path: str) -> str:
        """Return the value of a field path such as `status.podIP` or `metadata.labels['app']`; empty when unset."""
        if match := re.fullmatch(r"metadata\.(labels|annotations)\['(.+)'\]", path):
            return (self.labels if match[1] == "labels" else self.annotations).get(match[2], "")
        return {
            "metadata.name": self.name,
            "metadata.namespace": self.namespace,
            "metadata.uid": self.uid,
            "spec.nodeName": self.node,
            "spec.serviceAccountName": self.service_account,
            "status.hostIP": "127.0.0.1",
            "status.podIP": self.ip,
            "status.podIPs": self.ip,
        }.get(path, "")


def source_data(kind: SourceKind, source: Object) -> dict[str, bytes]:
    """Return the keys of a Secret or ConfigMap with their decoded values."""
    plain = source.get("data") or {}
    if kind == "Secret":
        return {key: base64.b64decode(value) for key, value in plain.items()}
    binary = source.get("binaryData") or {}
    return {key: value.encode() for key, value in plain.items()} | {
        key: base64.b64decode(value) for key, value in binary.items()
    }


def referenced_sources(spec: Object) -> set[tuple[SourceKind, str]]:
    """Return every Secret and ConfigMap that the containers or volumes of a pod name."""
    found: set[tuple[SourceKind, str]] = set()
    for container in spec["containers"]:
        for variable in container.get("env") or []:
            found |= _references(variable.get("valueFrom") or {})
        for source in container.get("envFrom") or []:
            found |= _references(source)
    for volume in spec.get("volumes") or []:
        found |= _references(volume)
        for source in (volume.get("projected") or {}).get("sources") or []:
            found |= _references(source)
    return found


def _references(holder: Object) -> set[tuple[SourceKind, str]]:
    found: set[tuple[SourceKind, str]] = set()
    for member in ("secretKeyRef", "secretRef", "secret"):
        if reference := holder.get(member):
            found.add(("Secret", reference.get("secretName") or reference.get("name", "")))
    for member in ("configMapKeyRef", "configMapRef", "configMap"):
        if reference := holder.get(member):
            found.add(("ConfigMap", reference.get("name", "")))
    return found


def container_environment(container: Object, facts: PodFacts, sources: Sources) -> dict[str, str]:
    """Return the container's own variables: `envFrom` first, then `env` in order, with `$(NAME)` expanded.

    Raises:
        MissingSource: a reference that is not optional cannot be resolved.
    """
    environment: dict[str, str] = {}
    for source in container.get("envFrom") or []:
        kind: SourceKind = "Secret" if source.get("secretRef") else "ConfigMap"
        reference = source.get("secretRef") or source.get("configMapRef") or {}
        data = _source_or_empty(kind, reference, sources)
        prefix = source.get("prefix", "")
        environment.update({prefix + key: value.decode(errors="replace") for key, value in data.items()})
    for variable in container.get("env") or []:
        value = _variable_value(variable, environment, facts, sources)
        if value is not None:
            environment[variable["name"]] = value
    return environment


def _variable_value(variable: Object, environment: Mapping[str, str], facts: PodFacts, sources: Sources) -> str | None:
    origin = variable.get("valueFrom")
    if not origin:
        return expand(variable.get("value", ""), environment)
    if reference := origin.get("fieldRef"):
        return facts.field(reference["fieldPath"])
    if reference := origin.get("secretKeyRef"):
        return _key_value("Secret", reference, sources)
    if reference := origin.get("configMapKeyRef"):
        return _key_value("ConfigMap", reference, sources)
    return ""  # resourceFieldRef: nothing is limited here


def _key_value(kind: SourceKind, reference: Object, sources: Sources) -> str | None:
    data = _source_or_empty(kind, reference, sources)
    if reference["key"] in data:
        return data[reference["key"]].decode(errors="replace")
    if reference.get("optional"):
        return None
    raise MissingSource(f"couldn't find key {reference['key']} in {kind} {reference.get('name', '')}")


def _source_or_empty(kind: SourceKind, reference: Object, sources: Sources) -> dict[str, bytes]:
    name = reference.get("name", "")
    source = sources(kind, name)
    if source is not None:
        return source_data(kind, source)
    if reference.get("optional"):
        return {}
    raise MissingSource(f'{kind.lower()} "{name}" not found')


def expand(text: str, environment: Mapping[str, str]) -> str:
    """Replace `$(NAME)` as Kubernetes does: unknown names stay as they are, `$$` is a literal dollar sign."""

    def replacement(match: re.Match[str]) -> str:
        name = match[1]
        return "$" if name is None else environment.get(name, match[0])

    return re.sub(r"\$\$|\$\(([-._a-zA-Z0-9]+)\)", replacement, text)


def volume_files(volume: Object, facts: PodFacts, sources: Sources, tokens: Tokens) -> dict[str, bytes]:
    """Return the files of a volume by relative path; empty for kinds without content of ours.

    Raises:
        MissingSource: a source that is not optional is missing.
    """
    if secret := volume.get("secret"):
        return _selected("Secret", {**secret, "name": secret["secretName"]}, sources)
    if config_map := volume.get("configMap"):
        return _selected("ConfigMap", config_map, sources)
    files: dict[str, bytes] = {}
    holders = (volume.get("projected") or {}).get("sources") or [volume]
    for holder in holders:
        if secret := holder.get("secret"):
            files |= _selected("Secret", secret, sources)
        elif config_map := holder.get("configMap"):
            files |= _selected("ConfigMap", config_map, sources)
        elif downward := holder.get("downwardAPI"):
            for item in downward.get("items") or []:
                files[item["path"]] = facts.field((item.get("fieldRef") or {}).get("fieldPath", "")).encode()
        elif (token := holder.get("serviceAccountToken")) and token.get("audience"):
            files[token["path"]] = tokens(token)
    return files


def _selected(kind: SourceKind, reference: Object, sources: Sources) -> dict[str, bytes]:
    data = _source_or_empty(kind, reference, sources)
    items = reference.get("items")
    if not items:
        return data
    files: dict[str, bytes] = {}
    for item in items:
        if item["key"] in data:
            files[item["path"]] = data[item["key"]]
        elif not reference.get("optional"):
            raise MissingSource(f"couldn't find key {item['key']} in {kind} {reference.get('name', '')}")
    return files


def local_mounts(container: Object, volumes: Mapping[str, Path]) -> dict[str, Path]:
    """Return the local path of each mount path of a container."""
    mounts: dict[str, Path] = {}
    for mount in container.get("volumeMounts") or []:
        if mount["name"] in volumes:
            mounts[mount["mountPath"].rstrip("/")] = volumes[mount["name"]] / mount.get("subPath", "")
    return mounts


def rewrite(text: str, mounts: Mapping[str, Path]) -> str:
    """Replace mounted paths by local ones.

    A path counts when it begins the text, or follows `=`, `:` or `,` (so `--file=/etc/x` and `PYTHONPATH=/a:/b` work), and
    ends at a path boundary; the longest mount path wins.
    """
    if not mounts:
        return text
    longest_first = sorted(mounts, key=len, reverse=True)
    pattern = rf"(?:^|(?<=[=:,]))({'|'.join(map(re.escape, longest_first))})(?=$|[/:,])"
    return re.sub(pattern, lambda match: str(mounts[match[1]]), text)


def command_line(
    container: Object, entrypoint: Sequence[str], environment: Mapping[str, str], mounts: Mapping[str, Path]
) -> list[str]:
    """Return the words to start: `command` or the image's entrypoint, then `args`, expanded and rewritten."""
    words = [*(container.get("command") or entrypoint), *(container.get("args") or [])]
    return [rewrite(expand(word, environment), mounts) for word in words]
