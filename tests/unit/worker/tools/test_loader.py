"""Tool modules that import, and those that do not."""

import sys
from pathlib import Path

import pytest
from dalang import InstructionsFunction, ToolFunction
from dalang_api import cel
from dalang_api.contract import Catalogue, ImportFailure
from dalang_worker.tools.loader import load_tools

FINE = "from dalang import tool\n\n@tool\ndef refund(order: str) -> str:\n    'Refund.'\n    return order\n"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of modules; what is imported from it is forgotten in the end."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "modules", dict(sys.modules))
    return tmp_path


def test_the_tools_of_all_modules_are_registered(folder: Path, registry: dict[str, ToolFunction]) -> None:
    (folder / "shop_a.py").write_text(FINE)
    (folder / "shop_b.py").write_text(FINE.replace("refund", "order_status"))
    catalogue = load_tools(["shop_a", "shop_b"], folder)
    assert [tool.name for tool in catalogue.tools] == ["order_status", "refund"]
    assert catalogue.tools[1].digest == registry["refund"].digest()
    assert catalogue.failures == []


@pytest.mark.parametrize(
    ("source", "error"),
    [
        pytest.param(
            "import no_such_library",
            "ModuleNotFoundError: No module named 'no_such_library'",
            id="a library is missing",
        ),
        pytest.param("raise SystemExit", "SystemExit", id="it leaves"),
        pytest.param("import sys\nsys.exit(3)", "SystemExit: 3", id="it leaves with a code"),
        pytest.param("x = (", "SyntaxError: '(' was never closed (shop_broken.py, line 1)", id="a syntax error"),
        pytest.param(
            "raise ValueError('one\\ntwo\\n\\nthree')", "ValueError: one two three", id="a message of several lines"
        ),
        pytest.param(
            "error = ValueError('bad')\nerror.add_note('a note')\nraise error",
            "ValueError: bad",
            id="an error with notes",
        ),
        pytest.param("raise ValueError('x' * 9999)", "ValueError: " + "x" * 500, id="a long message"),
        pytest.param(
            FINE.replace("order: str", "order"),
            "TypeError: tool refund: parameter order needs a type annotation",
            id="a tool that cannot be described",
        ),
        pytest.param("import asyncio\nraise asyncio.CancelledError", "CancelledError", id="the oddest exceptions"),
    ],
)
def test_a_module_that_does_not_import_is_told_and_stops_nothing(
    folder: Path, registry: dict[str, ToolFunction], source: str, error: str
) -> None:
    (folder / "shop_broken.py").write_text(source)
    (folder / "shop_fine.py").write_text(FINE)
    catalogue = load_tools(["shop_broken", "no_such_module", "shop_fine"], folder)
    assert catalogue.failures == [
        ImportFailure(module="shop_broken", error=error),
        ImportFailure(module="no_such_module", error="ModuleNotFoundError: No module named 'no_such_module'"),
    ]
    assert [tool.name for tool in catalogue.tools] == ["refund"]
    assert list(registry) == ["refund"]


def test_two_modules_with_one_tool_s_name_are_told(folder: Path, registry: dict[str, ToolFunction]) -> None:
    (folder / "shop_a.py").write_text(FINE)
    (folder / "shop_b.py").write_text(FINE)
    catalogue = load_tools(["shop_a", "shop_b"], folder)
    (failure,) = catalogue.failures
    assert failure.module == "shop_b"
    assert "tool 'refund' is registered by shop_a.refund already" in failure.error
    assert registry["refund"].function.__module__ == "shop_a"


def test_the_folder_comes_before_everything_else(folder: Path, registry: dict[str, ToolFunction]) -> None:
    (folder / "this.py").write_text(FINE)  # the standard library has one of that name
    assert [tool.name for tool in load_tools(["this"], folder).tools] == ["refund"]


def test_without_modules_there_are_no_tools(registry: dict[str, ToolFunction]) -> None:
    assert load_tools([], None) == Catalogue(tools=[], failures=[], instructions=[])


def test_instructions_are_in_the_catalogue_by_name(
    folder: Path, registry: dict[str, ToolFunction], prompt_registry: dict[str, InstructionsFunction]
) -> None:
    (folder / "shop_prompts.py").write_text(
        "from dalang import instructions\n\n"
        "@instructions(name='polite')\ndef b() -> str:\n    return 'Be polite.'\n\n"
        "@instructions\nasync def brief() -> str:\n    return 'Be brief.'\n"
    )
    assert load_tools(["shop_prompts"], folder) == Catalogue(tools=[], failures=[], instructions=["brief", "polite"])


def test_a_policy_that_does_not_compile_is_told_and_the_tool_stays(
    folder: Path, registry: dict[str, ToolFunction]
) -> None:
    cel.check("true", "call")  # a library in C++, which `folder` must not make forgotten
    policy = "@tool(approval=Approval(when='args.amount >'))"
    source = FINE.replace("@tool", policy).replace("import tool", "import Approval, tool")
    (folder / "shop_when.py").write_text(source)
    catalogue = load_tools(["shop_when"], folder)
    (failure,) = catalogue.failures
    assert (failure.module, [tool.name for tool in catalogue.tools]) == ("shop_when", ["refund"])
    assert failure.error.startswith("tool refund: approval.when: 1:14: Syntax error")
