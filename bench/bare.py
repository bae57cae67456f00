"""The floors: a bare Temporal workflow with one model call, and a bare agent loop. `python -m bench.bare` serves both."""

import asyncio
import json
import os
import signal
from datetime import timedelta
from typing import Any

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


# The loop in as few lines as it takes: no snapshot, limits, report, retry rules or transcript kept out of the inputs.

ECHO = {
    "type": "function",
    "function": {"name": "echo", "parameters": {"type": "object", "properties": {"text": {"type": "string"}}}},
}


@activity.defn
async def converse(model: str, messages: list[dict[str, Any]]) -> dict[str, Any]:
    body: dict[str, Any] = {"model": model, "messages": messages, "tools": [ECHO]}
    completion = await _client().chat.completions.create(**body)
    message: dict[str, Any] = completion.choices[0].message.model_dump(exclude_none=True)
    return message


@activity.defn
async def echo(arguments: str) -> str:
    text: str = json.loads(arguments)["text"]
    return text


@workflow.defn
class BareLoop:
    @workflow.run
    async def run(self, model: str) -> str:
        messages: list[dict[str, Any]] = [{"role": "user", "content": "hi"}]
        limit = timedelta(minutes=10)
        while True:
            reply = await workflow.execute_activity(converse, args=[model, messages], start_to_close_timeout=limit)
            messages.append(reply)
            if not reply.get("tool_calls"):
                return str(reply["content"])
            for call in reply["tool_calls"]:
                said = await workflow.execute_activity(
                    echo, call["function"]["arguments"], start_to_close_timeout=limit
                )
                messages.append({"role": "tool", "tool_call_id": call["id"], "content": said})


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
        workflows=[Bare, BareLoop],
        activities=[ask, converse, echo],
        workflow_runner=UnsandboxedWorkflowRunner(),  # as Dalang's own worker
        build_id="bare",
    ):
        print("ready", flush=True)
        await stopping.wait()
    os._exit(0)


if __name__ == "__main__":
    asyncio.run(serve())
