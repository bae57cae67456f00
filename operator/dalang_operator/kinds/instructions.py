"""The text of an Agent's instructions, which may stand in a ConfigMap, and what can be wrong with it. Pure."""

from collections.abc import Mapping

from dalang_api.v1alpha1.conditions import Reason

from dalang_operator.kinds.reach import Gap
from dalang_operator.kube.resources import Json, key_of
from dalang_operator.runtime.references import instructions_key_of

INSTRUCTIONS_MAX = 32768
"""The most characters of a ConfigMap's text: what the API allows in `instructions`, too."""
MISSING_SECONDS = 10.0
"""When to look again at a ConfigMap that is missing or wrong: without a label of ours it is not watched."""

ConfigMaps = Mapping[str, Json | None]
"""The ConfigMaps that Agents take their instructions from, by name; None where there is none."""


def text_of(agent: Json, config_maps: ConfigMaps) -> str | None:
    """Return the text, a template; None where there is none, or a function returns it."""
    source = instructions_key_of(agent)
    if source is None:
        own: str | None = agent["spec"].get("instructions")
        return own
    text: str | None = ((config_maps.get(source.name) or {}).get("data") or {}).get(source.key)
    return text


def config_map_exists(agent: Json, config_maps: ConfigMaps) -> Gap | None:
    """There is the ConfigMap of `instructionsFrom`, and it has the key."""
    source = instructions_key_of(agent)
    if source is None or text_of(agent, config_maps) is not None:
        return None
    key = key_of(agent)
    if config_maps.get(source.name) is None:
        lacking = f"There is no ConfigMap {source.name} in namespace {key.namespace}"
    else:
        lacking = f"ConfigMap {source.name} has no text under the key {source.key}"
    waiting = f"{lacking}, which Agent {key.name} names in instructionsFrom; the run starts when it is there"
    return Gap(Reason.CONFIG_MAP_NOT_FOUND, lacking, waiting)


def excess(agent: Json, config_maps: ConfigMaps) -> str | None:
    """Return what to say of a text that is too long, or None."""
    source = instructions_key_of(agent)
    length = len(text_of(agent, config_maps) or "")
    if source is None or length <= INSTRUCTIONS_MAX:
        return None
    return f"The instructions in ConfigMap {source.name} have {length} characters; {INSTRUCTIONS_MAX} are allowed"
