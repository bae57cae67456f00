"""AgentModel: a model endpoint with its credentials. The platform's side: who may write it may choose where a key goes."""

from typing import Annotated, Any, ClassVar, Literal

from pydantic import ConfigDict, Field

from dalang_api.v1alpha1.schema import (
    ApiModel,
    Conditions,
    Decimal,
    Resource,
    SecretKeyReference,
    pending_conditions,
    rule,
    rules,
)


class ApiKey(ApiModel):
    """Where the key stands. The worker reads it from a mounted file; no other process sees it."""

    secret_key_ref: SecretKeyReference
    """The key of a Secret that holds the API key. The Secret may be created later; calls wait for it."""


class ModelAuth(ApiModel):
    """How a call proves who it is. Leave it out for endpoints that ask for nothing."""

    api_key: ApiKey
    """An API key, sent as a bearer token."""


class OpenAIEndpoint(ApiModel):
    """Settings of provider OpenAI: of every endpoint that speaks Chat Completions."""

    base_url: Annotated[
        str, Field(alias="baseURL", min_length=8, max_length=2048, pattern=r"^https?://[^\s/?#@]+(/[^\s?#]*)?$")
    ]
    """Root of the API, such as `http://ollama.models:11434/v1`. It holds no credentials: those belong in `auth`."""


class ModelParameters(ApiModel):
    """Parameters of a call; each is sent only where it is set and the provider takes it."""

    temperature: Decimal | None = None
    """Sampling temperature, as a string such as "0.2". Default: the provider's."""
    max_output_tokens: Annotated[int, Field(ge=1, le=1_000_000, json_schema_extra={"format": "int32"})] | None = None
    """The most tokens of one answer. Default: the provider's."""


class AgentModelSpec(ApiModel):
    """The endpoint, the model's name there, and the credentials."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            rule("!has(self.openAI) || self.provider == 'OpenAI'", "openAI goes with provider: OpenAI"),
        )
    )

    provider: Literal["OpenAI"]
    """The API the endpoint speaks. OpenAI is Chat Completions: OpenAI itself, and DeepSeek, Ollama, vLLM and others."""
    name: Annotated[str, Field(min_length=1, max_length=256)]
    """The model's name at the provider, such as `gpt-5`."""
    auth: ModelAuth | None = None
    """How calls prove who they are. Leave it out for an endpoint that asks for nothing."""
    open_ai: Annotated[OpenAIEndpoint | None, Field(alias="openAI")] = None
    """Settings of provider OpenAI. Default: the endpoint in the workers' OPENAI_BASE_URL, otherwise OpenAI's own."""
    parameters: ModelParameters | None = None
    """Parameters of every call. An Agent's own parameters win."""


class AgentModelStatus(ApiModel):
    """Whether the definition is usable."""

    model_config = ConfigDict(
        json_schema_extra={"default": {"observedGeneration": -1, "conditions": pending_conditions("Ready")}}
    )

    conditions: Conditions = []
    """`Ready` is True with reason Accepted when the definition is usable. Only a call can tell whether key and endpoint
    are right."""
    observed_generation: Annotated[int, Field(ge=-1, json_schema_extra={"format": "int64"})] | None = None
    """The `metadata.generation` the conditions are of; -1: the controller has not looked yet."""


class AgentModel(Resource):
    """A model endpoint with its credentials.

    Agents name an AgentModel in `modelRef`. The key stays in its Secret: only the workers that call the model read it.
    """

    KIND: ClassVar[str] = "AgentModel"
    PLURAL: ClassVar[str] = "agentmodels"
    SHORT: ClassVar[str] = "agmodel"
    NAME_MAX: ClassVar[int] = 63
    SELECTABLE: ClassVar[list[str]] = []
    COLUMNS: ClassVar[list[dict[str, Any]]] = [
        {"name": "Provider", "type": "string", "jsonPath": ".spec.provider"},
        {"name": "Model", "type": "string", "jsonPath": ".spec.name"},
        {"name": "Ready", "type": "string", "jsonPath": ".status.conditions[?(@.type=='Ready')].status"},
        {"name": "Age", "type": "date", "jsonPath": ".metadata.creationTimestamp"},
    ]

    spec: AgentModelSpec
    """The endpoint, the model's name there, and the credentials."""
    status: AgentModelStatus | None = None
    """Whether the definition is usable."""
