"""The objects a pool owns, as they are sent."""

from dalang_operator.kinds.agentpool.desired import (
    WorkerSettings,
    build_of,
    make_deployment,
    make_tools_copy,
    mounted_secrets,
)
from dalang_operator.kube.resources import Json

from tests.build import INSTALLATION, config_map, pool

WORKER = WorkerSettings(INSTALLATION, "dalang:1", "temporal:7233", "tns", True, "info", "json")


def pod_of(deployment: Json) -> Json:
    pod: Json = deployment["spec"]["template"]["spec"]
    return pod


def test_the_worker_pod() -> None:
    made = make_deployment(
        pool("gpu", tools=["shop.tools", "weather"], slots=7),
        WORKER,
        build="b1",
        tools_copy="dalang-gpu-tools-1",
        secrets=frozenset({"openai"}),
    )
    assert "replicas" not in made["spec"]
    assert made["metadata"]["name"] == "dalang-gpu"
    assert made["metadata"]["ownerReferences"] == [
        {
            "apiVersion": "dalang.dev/v1alpha1",
            "kind": "AgentPool",
            "name": "gpu",
            "uid": "uid-gpu",
            "controller": True,
            "blockOwnerDeletion": False,
        }
    ]
    assert made["spec"]["selector"] == {"matchLabels": {"dalang.dev/pool": "gpu"}}
    assert made["spec"]["strategy"]["rollingUpdate"]["maxUnavailable"] == 0
    pod = pod_of(made)
    assert pod["automountServiceAccountToken"] is False
    assert pod["enableServiceLinks"] is False
    assert pod["terminationGracePeriodSeconds"] == 150
    [container] = pod["containers"]
    assert container["name"] == "worker"
    assert container["command"] == ["dalang", "worker"]
    values = {env["name"]: env.get("value") for env in container["env"]}
    assert values == {
        "DALANG_INSTALLATION": INSTALLATION,
        "DALANG_NAMESPACE": "shop",
        "DALANG_POOL": "gpu",
        "DALANG_BUILD": "b1",
        "DALANG_TOOLS": "shop.tools,weather",
        "DALANG_TOOLS_PATH": "/etc/dalang/tools",
        "DALANG_SECRETS_PATH": "/var/run/dalang/secrets",
        "DALANG_SLOTS": "7",
        "DALANG_TEMPORAL_ADDRESS": "temporal:7233",
        "DALANG_TEMPORAL_NAMESPACE": "tns",
        "DALANG_TEMPORAL_TLS": "true",
        "DALANG_LOG_LEVEL": "info",
        "DALANG_LOG_FORMAT": "json",
        "DALANG_POD": None,
        "POD_IP": None,
        "DALANG_HTTP_ADDRESS": "$(POD_IP):8080",
    }
    names = [env["name"] for env in container["env"]]
    assert names.index("POD_IP") < names.index("DALANG_HTTP_ADDRESS"), "a variable may name only earlier ones"
    [secret, tools] = pod["volumes"]
    assert secret["secret"] == {"secretName": "openai", "optional": True}
    assert tools["configMap"] == {"name": "dalang-gpu-tools-1"}
    assert [mount["mountPath"] for mount in container["volumeMounts"]] == [
        "/var/run/dalang/secrets/openai",
        "/etc/dalang/tools",
    ]
    assert mounted_secrets(made) == {"openai"}


def test_nothing_empty_is_sent_since_the_server_would_leave_it_out() -> None:
    made = make_deployment(pool(), WORKER, build="b1", tools_copy=None, secrets=frozenset())
    [container] = pod_of(made)["containers"]
    assert "volumes" not in pod_of(made)
    assert all(env.get("value") != "" for env in container["env"])
    assert "DALANG_TOOLS" not in {env["name"] for env in container["env"]}


def test_a_pools_own_labels_and_annotations_are_not_copied() -> None:
    """Argo CD's tracking labels on a child would have it pruned."""
    marked = pool(metadata={"labels": {"argocd": "x"}, "annotations": {"argocd": "x"}})
    made = make_deployment(marked, WORKER, build="b1", tools_copy=None, secrets=frozenset())
    assert "argocd" not in made["metadata"]["labels"]
    assert "argocd" not in made["metadata"]["annotations"]


def test_the_copy_is_named_by_its_content() -> None:
    first = make_tools_copy(pool(), [config_map(a__py="1"), config_map(b__py="2", a__py="3")])
    same = make_tools_copy(pool(), [config_map(a__py="3", b__py="2")])
    other = make_tools_copy(pool(), [config_map(a__py="4")])
    assert first is not None
    assert same is not None
    assert other is not None
    assert first["data"] == {"a.py": "3", "b.py": "2"}, "of one file in two ConfigMaps the later one counts"
    assert first["immutable"] is True
    assert first["metadata"]["name"] == same["metadata"]["name"] != other["metadata"]["name"]
    assert make_tools_copy(pool(), []) is None


def test_the_build_changes_with_all_that_decides_the_tools_and_with_nothing_else() -> None:
    base = build_of(pool(), None, WORKER)
    assert len(base) == 16
    assert build_of(pool(slots=5), None, WORKER) == base
    assert build_of(pool(image="x"), None, WORKER) != base
    assert build_of(pool(tools=["m"]), None, WORKER) != base
    assert build_of(pool(), make_tools_copy(pool(), [config_map(a__py="1")]), WORKER) != base
