"""Imports the pool's tool modules. A module that does not import is told of, and does not stop the worker.

Likewise a tool whose `approval.when` does not compile: a human is asked about each of its calls.
"""

import importlib
import logging
import sys
from pathlib import Path

from dalang.prompts import registered_instructions
from dalang.tools import ToolFunction, registered_tools
from dalang_api import cel
from dalang_api.contract import Catalogue, CatalogueTool, ImportFailure

from dalang_worker.text import clean

log = logging.getLogger(__name__)


def load_tools(modules: list[str], tools_path: Path | None) -> Catalogue:
    """Import the modules and return what they registered, and which of them failed with what."""
    if tools_path is not None:
        sys.path.insert(0, str(tools_path))
    failures = [failure for module in modules if (failure := _import(module)) is not None]
    failures += [failure for tool in registered_tools().values() if (failure := _check(tool)) is not None]
    tools = [CatalogueTool(name=tool.name, digest=tool.digest()) for tool in registered_tools().values()]
    return Catalogue(
        tools=sorted(tools, key=lambda tool: tool.name),
        failures=failures,
        instructions=sorted(registered_instructions()),
    )


def _import(module: str) -> ImportFailure | None:
    try:
        importlib.import_module(module)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # somebody else's code: even SystemExit must not end the worker
        log.exception("tool module %s cannot be imported", module)
        return ImportFailure(module=module, error=_last_line(error))
    return None


def _check(tool: ToolFunction) -> ImportFailure | None:
    if tool.approval is None or tool.approval.when is None:
        return None
    try:
        cel.check(tool.approval.when, "call")
    except cel.CelError as error:
        log.error("tool %s: approval.when: %s", tool.name, error)
        return ImportFailure(module=tool.function.__module__, error=f"tool {tool.name}: approval.when: {error}"[:512])
    return None


def _last_line(error: BaseException) -> str:
    """Return what a traceback ends with, in one line; pydantic's and annotated errors go on for more."""
    return clean(f"{type(error).__name__}: {' '.join(str(error).split())}".removesuffix(": "))[:512]
