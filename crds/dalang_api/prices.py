"""What a model call cost, by the price list of `genai-prices`, which is part of that package and never fetched.

No price is told as no price: a budget in dollars must not take a model for free because nobody knows what it costs.
"""

from decimal import ROUND_HALF_UP, Decimal
from typing import Any

_PROVIDERS = {"Anthropic": "anthropic", "Bedrock": "aws", "AzureOpenAI": "azure"}
"""Priced by provider whatever their address, which may be a gateway's. An endpoint that only speaks OpenAI's protocol
may be anybody's, and is priced by its address."""
_STEP = Decimal("0.000000001")


def cost_usd(
    provider: str,
    model: str,
    base_url: str | None,
    *,
    input_tokens: int,
    output_tokens: int,
    cache_read_tokens: int = 0,
    cache_write_tokens: int = 0,
) -> Decimal | None:
    """Return what a call cost in dollars, with 9 decimals, or nothing where the price is not known.

    Args:
        provider: As an AgentModel names it: `OpenAI`, `AzureOpenAI`, `Anthropic` or `Bedrock`.
        model: Its name at the provider.
        base_url: Root of the API; absent: the provider's own.
        input_tokens: All tokens sent, those read from and written to a cache included.
        output_tokens: Tokens answered, those of thinking included.
        cache_read_tokens: How many of the input came from a cache.
        cache_write_tokens: How many of the input were written to one.
    """
    place = _place(provider, base_url)
    if place is None:
        return None
    # Imported on first use: 0.15 s and 30 MB. A controller that has no budgets to judge does without.
    from genai_prices import Usage, calc_price

    usage = Usage(
        # Some compatible servers do not count what was cached.
        input_tokens=max(input_tokens, cache_read_tokens + cache_write_tokens),
        output_tokens=output_tokens,
        cache_read_tokens=cache_read_tokens,
        cache_write_tokens=cache_write_tokens,
    )
    try:
        price = calc_price(usage, model, **place)
    except (LookupError, ValueError):
        return None
    # The list has models, such as those in preview, of which it knows the name alone: they would cost nothing.
    if price.model_price.input_mtok is None or (output_tokens and price.model_price.output_mtok is None):
        return None
    return price.total_price.quantize(_STEP, ROUND_HALF_UP)


def is_priced(provider: str, model: str, base_url: str | None) -> bool:
    """Return whether the price of the model's tokens, in and out, is known."""
    return cost_usd(provider, model, base_url, input_tokens=1, output_tokens=1) is not None


def decimal_text(value: Decimal) -> str:
    """Return a finite decimal as plain text: no exponent, no zeros at the end."""
    if not value:
        return "0"
    text = f"{value:f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def _place(provider: str, base_url: str | None) -> dict[str, Any] | None:
    """Return what finds the provider in the price list."""
    if provider in _PROVIDERS:
        return {"provider_id": _PROVIDERS[provider]}
    if provider != "OpenAI":
        return None
    return {"provider_id": "openai"} if base_url is None else {"provider_api_url": base_url}
