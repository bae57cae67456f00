"""The floor: a bare Temporal workflow with one activity that makes the same model call. `python -m bench.bare` serves it."""

import asyncio
import os
import signal
from datetime import timedelta

from openai import AsyncOpenAI
from temporalio import activity, workflow
from temporalio.client import Client
from temporalio.worker import UnsandboxedWorkflowRunner, Worker

QUEUE = "bench-bare"


@activity.defn
async def ask(model: str) -> str:
    completion = await _client().chat.completions.create(model=model, messages=[{"role": "user", "content": "hi"}])
    return completion.choices[0].message.content or ""


@workflow.defn
class Bare:
    @workflow.run
    async def run(self, model: str) -> str:
        answer: str = await workflow.execute_activity(ask, model, start_to_close_timeout=timedelta(minutes=10))
        return answer


_clients: list[AsyncOpenAI] = []


def _client() -> AsyncOpenAI:
    if not _clients:
        _clients.append(AsyncOpenAI(api_key="none", base_url=os.environ["DALANG_MODEL_URL"] + "/v1", max_retries=0))
    return _clients[0]


async def serve() -> None:
    stopping = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopping.set)
    client = await Client.connect(os.environ["TEMPORAL_ADDRESS"], identity="bare")
    async with Worker(
        client,
        task_queue=QUEUE,
        workflows=[Bare],
        activities=[ask],
        workflow_runner=UnsandboxedWorkflowRunner(),  # as Dalang's own worker
        build_id="bare",
    ):
        print("ready", flush=True)
        await stopping.wait()
    os._exit(0)


if __name__ == "__main__":
    asyncio.run(serve())
