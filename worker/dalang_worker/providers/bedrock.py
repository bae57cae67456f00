"""Provider Bedrock: Claude at Amazon Bedrock, by the same messages as at Anthropic.

Without a key, AWS's default chain proves who calls: an IAM role of the service account (IRSA, Pod Identity), or of the node.
The SDK asks it in a thread. What it imports only then is imported here already, since a provider's module is in a thread too.
"""

from datetime import UTC, datetime
from typing import Any

import boto3  # type: ignore[import-untyped]  # noqa: F401  the SDK imports it with the first call
import botocore.parsers  # type: ignore[import-untyped]  # noqa: F401  likewise
from anthropic import AsyncAnthropicBedrock
from botocore.eventstream import ParserError  # type: ignore[import-untyped]
from botocore.exceptions import (  # type: ignore[import-untyped]
    BotoCoreError,
    ClientError,
    NoCredentialsError,
    PartialCredentialsError,
    ProfileNotFound,
)
from dalang_api.contract import ModelSnapshot
from dalang_api.v1alpha1.conditions import Reason

from dalang_worker.providers import CallFailure, Credentials, Verdict, schemas
from dalang_worker.providers.anthropic import RETRY, TIMEOUT, AnthropicProvider, classify, has_schemas
from dalang_worker.providers.http import one_line

FINAL = CallFailure(Verdict.FINAL, Reason.MODEL_FAILED)
REMEDY = (
    "the pod has no AWS credentials: set spec.auth.apiKey of the AgentModel to a Bedrock API key, or give the pool's "
    "service account an IAM role"
)


class BedrockProvider(AnthropicProvider):
    """The Messages API behind AWS's addresses, signatures and names of errors."""

    broken = (*AnthropicProvider.broken, BotoCoreError, ClientError, ParserError, RuntimeError)

    def takes_schema(self, model: ModelSnapshot, schema: dict[str, Any]) -> bool:
        """Return whether the API's own mode takes the schema. An inference profile's ARN does not tell its model."""
        is_known = "claude" in model.model and has_schemas(model.model)
        return is_known and schemas.qualifies(schema, schemas.ANTHROPIC)

    def explain(self, error: Exception, base_url: str) -> tuple[CallFailure, str]:
        """Return what an error comes to. That there are no credentials at all, the SDK tells with a RuntimeError."""
        is_nothing = isinstance(error, RuntimeError) and "credentials" in str(error)
        if is_nothing or isinstance(error, NoCredentialsError | PartialCredentialsError | ProfileNotFound):
            return FINAL, one_line(f"{REMEDY} ({error})")
        if isinstance(error, ClientError):  # of AWS's token service, which exchanges the pod's identity
            status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode")
            return classify(status, {}, None, datetime.now(UTC)), one_line(f"AWS credentials: {error}")
        if isinstance(error, BotoCoreError):
            return RETRY, one_line(f"AWS credentials: {error}")
        return super().explain(error, base_url)

    def make_client(self, model: ModelSnapshot, credentials: Credentials) -> AsyncAnthropicBedrock:
        """Return a new client."""
        return AsyncAnthropicBedrock(
            api_key=credentials.api_key,
            aws_region=model.region,
            base_url=model.base_url,
            max_retries=0,
            timeout=TIMEOUT,
        )


def make_provider() -> BedrockProvider:
    """Return the provider of this process."""
    return BedrockProvider()
