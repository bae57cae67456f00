"""Providers are imported on first use: an SDK costs a worker a second it may never need."""

import subprocess
import sys

import pytest
from dalang_worker import providers

SDKS = ("openai", "anthropic", "boto3", "botocore")


@pytest.mark.parametrize("name", ["OpenAI", "AzureOpenAI", "Anthropic", "Bedrock"])
async def test_every_provider_loads(name: str) -> None:
    provider = await providers.load(name)
    await provider.close()


@pytest.mark.parametrize(
    ("module", "imported"),
    [
        pytest.param("dalang_worker.providers", [], id="the interface"),
        pytest.param("dalang_worker.providers.openai", ["openai"], id="OpenAI"),
        pytest.param("dalang_worker.providers.anthropic", ["anthropic"], id="Anthropic"),
    ],
)
def test_nothing_else_is_imported(module: str, imported: list[str]) -> None:
    code = f"import sys, {module}; print([name for name in {SDKS} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str(imported)
