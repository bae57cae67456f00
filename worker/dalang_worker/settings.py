"""Settings of a worker process. The operator writes them into the pool's Deployment as environment variables."""

from pathlib import Path

from dalang_api import contract
from dalang_api.contract import ApprovalFloor, McpServerSettings, RetrieverSettings
from dalang_api.process import ProcessSettings
from pydantic_settings import SettingsConfigDict


class WorkerSettings(ProcessSettings):
    """Run a worker of an AgentPool: the agent workflows, model calls and tools of one task queue."""

    model_config = SettingsConfigDict(cli_prog_name="dalang worker")

    installation: str
    """Name of the installation; the first part of every task queue and workflow id."""
    namespace: str
    """Kubernetes namespace of the pool."""
    pool: str
    """Name of the AgentPool."""
    build: str = "dev"
    """Digest of what this worker was built from; its catalogue counts for this build only."""
    pod: str = "local"
    """Name of the pod, for Temporal's event log."""
    tools: str = ""
    """Python modules that register tools, separated by commas."""
    tools_path: Path | None = None
    """Folder of further modules (the pool's `toolsFrom`), put before everything else on Python's path."""
    secrets_path: Path = Path("/var/run/dalang/secrets")
    """Folder with one folder per Secret and one file per key."""
    identity_path: Path = Path(contract.IDENTITY_PATH)
    """Folder with one folder per audience (`contract.identity_folder`) and in it the pod's token for it."""
    mcp_servers: list[McpServerSettings] = []
    """The pool's MCP servers, as JSON."""
    retrievers: list[RetrieverSettings] = []
    """The pool's retrievers, as JSON."""
    approvals: list[ApprovalFloor] = []
    """The pool's approvals, as JSON: a floor under what Agents ask for."""
    slots: int = 100
    """How many activities run at the same time."""
    tool_threads: int = 32
    """How many sync tools run at the same time."""
    transcript_cache_mib: int = 64
    """The most memory the transcripts of running runs may take, in MiB; the rest is asked for by query."""
    drain_seconds: float = 120.0
    """How long a stopping worker waits for the activities it runs."""

    @property
    def queue(self) -> str:
        """The task queue this worker serves."""
        return contract.pool_queue(self.installation, self.namespace, self.pool)

    @property
    def tool_modules(self) -> list[str]:
        """The modules of `tools`."""
        return [name for name in (part.strip() for part in self.tools.split(",")) if name]
