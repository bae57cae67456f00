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


class OpenAIIdentity(ApiModel):
    """What OpenAI's token exchange asks for beside the pod's token."""

    identity_provider_id: Annotated[str, Field(alias="identityProviderID", min_length=1, max_length=256)]
    """The identity provider that was set up at OpenAI for this cluster."""
    service_account_id: Annotated[str, Field(alias="serviceAccountID", min_length=1, max_length=256)]
    """OpenAI's service account whose rights the calls have."""


class AnthropicIdentity(ApiModel):
    """What Anthropic's token exchange asks for beside the pod's token."""

    federation_rule_id: Annotated[str, Field(alias="federationRuleID", min_length=1, max_length=256)]
    """The federation rule that was set up at Anthropic for this cluster."""
    organization_id: Annotated[str, Field(alias="organizationID", min_length=1, max_length=256)]
    """Anthropic's organization whose rights the calls have."""


class WorkloadIdentity(ApiModel):
    """A token that Kubernetes issues to the worker's pod, exchanged by the provider: no key to keep or rotate."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            rule("has(self.openAI) != has(self.anthropic)", "set exactly one of openAI and anthropic"),
        )
    )

    audience: Annotated[str, Field(min_length=1, max_length=253)]
    """The audience the token is issued for, as it was agreed with the provider."""
    open_ai: Annotated[OpenAIIdentity | None, Field(alias="openAI")] = None
    """What OpenAI's token exchange asks for."""
    anthropic: AnthropicIdentity | None = None
    """What Anthropic's token exchange asks for."""


class ModelAuth(ApiModel):
    """How a call proves who it is: exactly one of `apiKey` and `workloadIdentity`."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            rule("has(self.apiKey) != has(self.workloadIdentity)", "set exactly one of apiKey and workloadIdentity"),
        )
    )

    api_key: ApiKey | None = None
    """An API key: for OpenAI and Bedrock a bearer token, for the others a header of their own."""
    workload_identity: WorkloadIdentity | None = None
    """The pod's own identity, where the provider takes it: OpenAI and Anthropic."""


BaseURL = Annotated[str, Field(min_length=8, max_length=2048, pattern=r"^https?://[^\s/?#@]+(/[^\s?#]*)?$")]
"""Root of an API. It holds no credentials: those belong in `auth`."""


class OpenAIEndpoint(ApiModel):
    """Settings of provider OpenAI: of every endpoint that speaks Chat Completions."""

    base_url: Annotated[BaseURL, Field(alias="baseURL")]
    """Root of the API, such as `http://ollama.models:11434/v1`. It holds no credentials: those belong in `auth`."""


class AzureOpenAIEndpoint(ApiModel):
    """Settings of provider AzureOpenAI."""

    endpoint: Annotated[str, Field(min_length=8, max_length=2048, pattern=r"^https?://[^\s/?#@]+/?$")]
    """The resource's endpoint, such as `https://shop.openai.azure.com`."""
    api_version: Annotated[str, Field(min_length=1, max_length=64, pattern=r"^[a-zA-Z0-9.-]+$")]
    """Version of the API, such as `2025-04-01-preview`."""
    deployment: Annotated[str, Field(min_length=1, max_length=256, pattern=r"^[a-zA-Z0-9._-]+$")]
    """Name of the deployment; `spec.name` stays the model's own name, by which it is priced."""


class AnthropicEndpoint(ApiModel):
    """Settings of provider Anthropic."""

    base_url: Annotated[BaseURL, Field(alias="baseURL")]
    """Root of the API, for a gateway or proxy. It holds no credentials: those belong in `auth`."""


class BedrockEndpoint(ApiModel):
    """Settings of provider Bedrock."""

    region: Annotated[str, Field(min_length=1, max_length=64, pattern=r"^[a-z0-9-]+$")]
    """The AWS region, such as `eu-central-1`."""
    base_url: Annotated[BaseURL | None, Field(alias="baseURL")] = None
    """Root of the API, for a VPC endpoint or proxy. Default: the region's own."""


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
            rule(
                "has(self.azureOpenAI) == (self.provider == 'AzureOpenAI')",
                "provider: AzureOpenAI needs azureOpenAI with endpoint, apiVersion and deployment, and no other takes it",
            ),
            rule("!has(self.anthropic) || self.provider == 'Anthropic'", "anthropic goes with provider: Anthropic"),
            rule(
                "has(self.bedrock) == (self.provider == 'Bedrock')",
                "provider: Bedrock needs bedrock with its region, and no other takes it",
            ),
            rule(
                "!has(self.auth) || !has(self.auth.workloadIdentity) || "
                "(self.provider == 'OpenAI' && has(self.auth.workloadIdentity.openAI)) || "
                "(self.provider == 'Anthropic' && has(self.auth.workloadIdentity.anthropic))",
                "workloadIdentity is for provider OpenAI with its member openAI, and Anthropic with its member anthropic; "
                "use apiKey for the others",
            ),
            rule(
                "!has(self.parameters) || !has(self.parameters.temperature) || "
                "!(self.provider in ['Anthropic', 'Bedrock'])",
                "the provider's API has no temperature any more; leave parameters.temperature out",
            ),
        )
    )

    provider: Literal["OpenAI", "AzureOpenAI", "Anthropic", "Bedrock"]
    """The API the endpoint speaks. OpenAI is Chat Completions: OpenAI itself, and DeepSeek, Ollama, vLLM and others.
    Bedrock is Anthropic's models on AWS."""
    name: Annotated[str, Field(min_length=1, max_length=256)]
    """The model's name at the provider, such as `gpt-5`."""
    auth: ModelAuth | None = None
    """How calls prove who they are. Leave it out for an endpoint that asks for nothing; Bedrock then uses what AWS gives
    the pod."""
    open_ai: Annotated[OpenAIEndpoint | None, Field(alias="openAI")] = None
    """Settings of provider OpenAI. Default: the endpoint in the workers' OPENAI_BASE_URL, otherwise OpenAI's own."""
    azure_open_ai: Annotated[AzureOpenAIEndpoint | None, Field(alias="azureOpenAI")] = None
    """Settings of provider AzureOpenAI."""
    anthropic: AnthropicEndpoint | None = None
    """Settings of provider Anthropic. Default: Anthropic's own endpoint."""
    bedrock: BedrockEndpoint | None = None
    """Settings of provider Bedrock."""
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
        {"name": "Reason", "type": "string", "jsonPath": ".status.conditions[?(@.type=='Ready')].reason"},
        {"name": "Age", "type": "date", "jsonPath": ".metadata.creationTimestamp"},
    ]

    spec: AgentModelSpec
    """The endpoint, the model's name there, and the credentials."""
    status: AgentModelStatus | None = None
    """Whether the definition is usable."""
