"""The operator's settings: flags of `dalang operator`, or environment variables `DALANG_…`."""

import re
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Literal

from dalang_api.process import ProcessSettings
from dalang_api.v1alpha1.schema import seconds
from pydantic import BeforeValidator, Field, field_validator
from pydantic_settings import NoDecode, SettingsConfigDict

_DURATION = re.compile(r"^([0-9]{1,5}(h|m|s|ms)){1,4}$")


def _parse_duration(value: object) -> object:
    """Read `10m` and the like, as everywhere in the API; anything else is left to pydantic."""
    if isinstance(value, str) and _DURATION.match(value):
        return timedelta(seconds=seconds(value))
    return value


def _split(value: object) -> object:
    """Read `a,b` as well as a repeated flag."""
    items = [value] if isinstance(value, str) else value
    if isinstance(items, list):
        return [part for item in items for part in str(item).split(",") if part]
    return value


Duration = Annotated[timedelta, BeforeValidator(_parse_duration)]
Words = Annotated[list[str], NoDecode, BeforeValidator(_split)]
Component = Literal["controller", "reporter"]


class OperatorSettings(ProcessSettings):
    """Run Dalang's operator: the controller, the reporter, or both."""

    model_config = SettingsConfigDict(cli_prog_name="dalang operator")

    kubeconfig: Path | None = None
    """kubeconfig file of the cluster. Default: the service account of the pod the operator runs in."""
    installation: Annotated[str, Field(max_length=63)] = ""
    """Name that all workflows and task queues of this installation begin with; no dots. Two installations on one Temporal
    namespace must differ in it. Default: dalang- and 8 digits of the uid of the namespace kube-system."""
    watch_namespace: Words = []
    """Namespaces to serve; repeat the flag for several. Default: all."""
    components: Annotated[list[Component], NoDecode, BeforeValidator(_split)] = ["controller", "reporter"]
    """What this process does. The controller acts in one process at a time (Lease), the reporter in any number."""
    lease_namespace: str = ""
    """Namespace of the Lease. Default: the pod's own, or `dalang-system` outside a cluster."""
    lease_name: str = ""
    """Name of the Lease. Default: dalang-controller- and the installation."""
    run_ttl: Duration = timedelta(hours=24)
    """How long finished AgentRuns with generateName or an owner are kept, unless they say so themselves. Long enough to
    look at yesterday's, short enough that etcd does not fill: 200,000 kept runs are about 2 GiB."""
    worker_image: str = ""
    """Image of the workers of pools that name none. Default: the operator's own version."""
    worker_temporal_address: str = ""
    """Temporal's address as workers see it, HOST:PORT. Default: --temporal-address."""
    scale_to_zero_after: Duration = timedelta(minutes=10)
    """How long a pool keeps its last worker with nothing to do, unless it says so itself. A new worker takes a few
    seconds, so the pause between two runs of a person should not stop it."""
    approval_proof: Literal["Required", "Off"] = "Required"
    """Required: a decision is delivered only while the admission policies that prove who decided are there, unaltered. Off:
    whoever may write an AgentApproval decides, under any name."""
    sweep_interval: Duration = timedelta(seconds=30)
    """Between two sweeps. Temporal allows 10 visibility queries a second for a namespace; a sweep makes two to three."""
    resync_interval: Duration = timedelta(minutes=10)
    """Between two listings of everything, which repair events that were missed. One listing of 10,000 runs takes a
    second of CPU."""

    @field_validator("installation")
    @classmethod
    def _has_no_dot(cls, installation: str) -> str:
        if not re.fullmatch(r"[A-Za-z0-9_-]*", installation):
            raise ValueError("the installation's name may have letters, digits, - and _ only")
        return installation
