"""The servers that activities call models at."""

from tests.unit.worker.providers.conftest import bare_environment, endpoint, scripted

__all__ = ["bare_environment", "endpoint", "scripted"]
