"""What a worker told becomes its pool's status."""

from datetime import timedelta

from dalang_api.contract import Catalogue, CatalogueTool, ImportFailure
from dalang_api.v1alpha1.agentpool import AgentPoolStatus
from dalang_operator.reporter.catalogue import catalogue_status

from tests.build import NOW, condition, pool

READY = condition("Ready", "True", "Available")


def test_tools_are_listed_by_name_beside_the_controllers_condition() -> None:
    told = Catalogue(tools=[CatalogueTool(name="b", digest="2"), CatalogueTool(name="a", digest="1")])
    given = pool(status={"build": "b1", "conditions": [READY]})
    status = catalogue_status(told, given, "b1", NOW)
    assert status["catalogue"] == {
        "build": "b1",
        "tools": [{"name": "a", "digest": "1"}, {"name": "b", "digest": "2"}],
    }
    assert [(found["type"], found["status"]) for found in status["conditions"]] == [
        ("Ready", "True"),
        ("ToolsLoaded", "True"),
    ]
    AgentPoolStatus.model_validate(status)
    again = catalogue_status(told, {**given, "status": status}, "b1", NOW + timedelta(hours=1))
    assert again == status, "the same told again is no write"


def test_modules_that_did_not_import_are_named_with_their_last_line() -> None:
    failures = [
        ImportFailure(module="shop.tools", error="ModuleNotFoundError: No module named 'x'"),
        ImportFailure(module="b", error="SyntaxError: " + "y" * 2000),
    ]
    status = catalogue_status(Catalogue(tools=[], failures=failures), pool(), "b1", NOW)
    [loaded] = status["conditions"]
    assert (loaded["status"], loaded["reason"]) == ("False", "ImportFailed")
    assert loaded["message"].startswith("module shop.tools: ModuleNotFoundError: No module named 'x'; module b: Syntax")
    assert len(loaded["message"]) == 1024


def test_instruction_functions_and_readable_keys_are_listed_within_bounds() -> None:
    told = Catalogue(
        tools=[],
        instructions=["b", "a", "a"],
        secret_keys=[f"openai/key-{number:03}" for number in range(300)],
    )
    catalogue = catalogue_status(told, pool(), "b1", NOW)["catalogue"]
    assert catalogue["instructions"] == ["a", "b"]
    assert len(catalogue["secretKeys"]) == 256
    AgentPoolStatus.model_validate({"catalogue": catalogue})
