"""The objects a pool owns, as they are sent."""

import json
from typing import Any

import pytest
from dalang_operator.kinds.agentpool.desired import (
    Credentials,
    WorkerSettings,
    build_of,
    capabilities_size,
    make_deployment,
    make_tools_copy,
    mounted_credentials,
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
        credentials=Credentials(frozenset({"openai"})),
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
    assert mounted_credentials(made) == Credentials(frozenset({"openai"}))


def test_nothing_empty_is_sent_since_the_server_would_leave_it_out() -> None:
    made = make_deployment(pool(), WORKER, build="b1", tools_copy=None, credentials=Credentials())
    [container] = pod_of(made)["containers"]
    assert "volumes" not in pod_of(made)
    assert all(env.get("value") != "" for env in container["env"])
    assert "DALANG_TOOLS" not in {env["name"] for env in container["env"]}


def test_a_token_is_issued_for_each_audience() -> None:
    credentials = Credentials(frozenset({"openai"}), frozenset({"https://api.openai.com/v1", "anthropic"}))
    made = make_deployment(pool(), WORKER, build="b1", tools_copy=None, credentials=credentials)
    secret, *tokens = pod_of(made)["volumes"]
    assert "secret" in secret
    assert [volume["projected"]["sources"] for volume in tokens] == [
        [{"serviceAccountToken": {"audience": audience, "expirationSeconds": 3600, "path": "token"}}]
        for audience in ("anthropic", "https://api.openai.com/v1")
    ]
    [container] = pod_of(made)["containers"]
    _, *mounts = container["volumeMounts"]
    assert [mount["mountPath"] for mount in mounts] == [
        f"/var/run/dalang/identity/{volume['name']}" for volume in tokens
    ]
    assert all(mount["readOnly"] for mount in mounts)
    assert all(len(volume["name"]) <= 63 for volume in tokens)
    assert {"name": "DALANG_IDENTITY_PATH", "value": "/var/run/dalang/identity"} in container["env"]
    assert mounted_credentials(made) == credentials


FROM_SECRET = {"secretKeyRef": {"name": "tools", "key": "token"}}
SECRET = {"name": "tools", "key": "token"}


@pytest.mark.parametrize(
    ("server", "settings"),
    [
        pytest.param(
            {
                "name": "weather",
                "streamableHTTP": {
                    "url": "http://w/mcp",
                    "headers": [{"name": "X-Team", "value": "shop"}, {"name": "X-Key", "valueFrom": FROM_SECRET}],
                    "bearerToken": FROM_SECRET,
                },
            },
            {
                "name": "weather",
                "transport": "streamableHTTP",
                "url": "http://w/mcp",
                "headers": [{"name": "X-Team", "value": "shop"}, {"name": "X-Key", "secret": SECRET}],
                "bearer_token": SECRET,
                "args": [],
                "env": [],
            },
            id="Streamable HTTP",
        ),
        pytest.param(
            {"name": "old", "sse": {"url": "http://w/sse"}},
            {"name": "old", "transport": "sse", "url": "http://w/sse", "headers": [], "args": [], "env": []},
            id="server-sent events",
        ),
        pytest.param(
            {
                "name": "files",
                "stdio": {
                    "command": "python",
                    "args": ["$(HOME)/$$.py"],
                    "env": [{"name": "KEY", "valueFrom": FROM_SECRET}, {"name": "EMPTY", "value": ""}],
                },
            },
            {
                "name": "files",
                "transport": "stdio",
                "headers": [],
                "command": "python",
                "args": ["$(HOME)/$$.py"],
                "env": [{"name": "KEY", "secret": SECRET}, {"name": "EMPTY", "value": ""}],
            },
            id="a program, and no dollar sign that Kubernetes would expand",
        ),
    ],
)
def test_mcp_servers_are_told_to_the_worker(server: Json, settings: Json) -> None:
    [(_, text)] = told(pool(mcpServers=[server])).items()
    assert json.loads(text) == [settings]
    assert "$" not in text


def test_retrievers_are_told_to_the_worker() -> None:
    handbook = {
        "url": "http://q:6333",
        "collection": "handbook",
        "limit": 3,
        "apiKey": FROM_SECRET,
        "embedding": {"modelRef": {"name": "gpt"}, "name": "text-embedding-3-small"},
    }
    local = {"path": "/data", "collection": "local", "embedding": {"modelRef": {"name": "emb"}}}
    owner = pool(retrievers=[{"name": "handbook", "qdrant": handbook}, {"name": "local", "qdrant": local}])
    assert json.loads(told(owner)["DALANG_RETRIEVERS"]) == [
        {
            "name": "handbook",
            "url": "http://q:6333",
            "collection": "handbook",
            "limit": 3,
            "api_key": SECRET,
            "embedding_model": "gpt",
            "embedding_name": "text-embedding-3-small",
        },
        {"name": "local", "path": "/data", "collection": "local", "limit": 5, "embedding_model": "emb"},
    ]


def told(owner: Json) -> dict[str, Any]:
    """Return what a pool's environment has that a plain one's has not."""
    environments = []
    for one in (owner, pool()):
        [container] = pod_of(make_deployment(one, WORKER, build="b1", tools_copy=None, credentials=Credentials()))[
            "containers"
        ]
        environments.append({env["name"]: env.get("value") for env in container["env"]})
    return {name: value for name, value in environments[0].items() if name not in environments[1]}


def test_what_capabilities_weigh_is_known_before_a_process_cannot_be_started() -> None:
    assert capabilities_size(pool()) == 2
    servers = [{"name": f"s{number}", "stdio": {"command": "c", "args": ["x" * 4096] * 10}} for number in range(4)]
    assert capabilities_size(pool(mcpServers=servers)) > 4 * 10 * 4096


def test_a_pools_own_labels_and_annotations_are_not_copied() -> None:
    """Argo CD's tracking labels on a child would have it pruned."""
    marked = pool(metadata={"labels": {"argocd": "x"}, "annotations": {"argocd": "x"}})
    made = make_deployment(marked, WORKER, build="b1", tools_copy=None, credentials=Credentials())
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
    assert build_of(pool(mcpServers=[{"name": "a"}]), None, WORKER) != base
    assert build_of(pool(retrievers=[{"name": "a"}]), None, WORKER) != base
    assert build_of(pool(mcpServers=[], retrievers=[]), None, WORKER) == base
    assert build_of(pool(), make_tools_copy(pool(), [config_map(a__py="1")]), WORKER) != base


def test_approvals_are_told_to_the_worker_and_make_another_build() -> None:
    floors = [{"tools": ["process_*"], "when": "args.amount > 100", "timeout": "1m"}, {"tools": ["pay"]}]
    owner = pool(approvals=floors)
    made = make_deployment(owner, WORKER, build="b1", tools_copy=None, credentials=Credentials())
    [text] = [each["value"] for each in pod_of(made)["containers"][0]["env"] if each["name"] == "DALANG_APPROVALS"]
    assert json.loads(text) == [
        {"when": "args.amount > 100", "timeout_seconds": 60.0, "on_timeout": "Reject", "tools": ["process_*"]},
        {"on_timeout": "Reject", "tools": ["pay"]},
    ]
    assert build_of(owner, None, WORKER) != build_of(pool(), None, WORKER)
    assert capabilities_size(pool(approvals=[{"tools": ["pay"], "when": "x" * 2000}] * 32)) > 32 * 2000
