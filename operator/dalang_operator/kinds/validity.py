"""Whether what one Agent says makes sense by itself: its readiness asks, and a run before it starts, so both say the same.

What takes long is remembered where it is checked (`templates`, `output_schema`). Pure.
"""

from collections import Counter
from collections.abc import Callable

from dalang_api import output_schema, templates
from dalang_api.contract import HandoffBinding

from dalang_operator.kinds.expressions import expression_problem
from dalang_operator.kinds.instructions import ConfigMaps, excess, text_of
from dalang_operator.kube.resources import Json


def instructions_are_a_template(agent: Json, config_maps: ConfigMaps) -> str | None:
    """Its instructions can be read as a template, and are no longer than allowed."""
    message = excess(agent, config_maps)
    if message:
        return message
    try:
        templates.check(text_of(agent, config_maps) or "")
    except templates.TemplateError as error:
        return f"The instructions are no template: {error}"
    return None


def output_schema_is_one(agent: Json, _: ConfigMaps) -> str | None:
    """Its `output.schema` is a JSON schema."""
    schema = agent["spec"].get("output", {}).get("schema")
    if schema is None:
        return None
    try:
        output_schema.check(schema)
    except output_schema.OutputSchemaError as error:
        return f"output.schema is no JSON schema: {error}"
    return None


def approvals_compile(agent: Json, _: ConfigMaps) -> str | None:
    """What decides whether a human is asked can be evaluated."""
    spec = agent["spec"]
    of_calls = [
        (f"tools[{tool['name']}].approval", tool["approval"]) for tool in spec.get("tools", ()) if "approval" in tool
    ]
    of_answers = [("output.approval", spec["output"]["approval"])] if "approval" in spec.get("output", {}) else []
    return expression_problem(of_calls, "call") or expression_problem(of_answers, "answer")


def tools_have_names_of_their_own(agent: Json, _: ConfigMaps) -> str | None:
    """The model sees no two tools of one name, hand-offs included; those of MCP servers give way by themselves."""
    twice = next((name for name, count in Counter(_tool_names(agent)).items() if count > 1), None)
    return f"The model would see two tools called {twice}, hand-offs included" if twice else None


def chosen_tool_exists(agent: Json, _: ConfigMaps) -> str | None:
    """Where `toolChoice` demands a tool there is one, by the name it says. What MCP servers have nobody knows yet."""
    choice = agent["spec"].get("toolChoice", {})
    if choice.get("mode") not in ("Required", "Tool") or any("mcp" in tool for tool in agent["spec"].get("tools", ())):
        return None
    names = _tool_names(agent)
    if not names:
        return f"toolChoice has mode {choice['mode']}, and there are neither tools nor hand-offs"
    if choice["mode"] == "Required" or choice["tool"] in names:
        return None
    return f"toolChoice names {choice['tool']}, which is none of the tools: {', '.join(sorted(names))}"


VALIDITY_CHECKS: tuple[Callable[[Json, ConfigMaps], str | None], ...] = (
    instructions_are_a_template,
    output_schema_is_one,
    approvals_compile,
    tools_have_names_of_their_own,
    chosen_tool_exists,
)
"""What must be so of an Agent that is valid; each returns what to say if it is not."""


def invalidity(agent: Json, config_maps: ConfigMaps) -> str | None:
    """Return the first thing that is wrong with what an Agent says, or None."""
    return next((message for check in VALIDITY_CHECKS if (message := check(agent, config_maps))), None)


def _tool_names(agent: Json) -> list[str]:
    """Return the names of the tools and hand-offs that the model sees, those of MCP servers left out."""
    spec = agent["spec"]
    names = [tool["name"] for tool in spec.get("tools", ()) if "mcp" not in tool]
    return names + [HandoffBinding(agent=handoff["agentRef"]["name"]).tool for handoff in spec.get("handoffs", ())]
