"""What calls cost, by hand, with models whose prices no longer change."""

from decimal import Decimal

import pytest
from dalang_api.prices import cost_usd, decimal_text, is_priced


@pytest.mark.parametrize(
    ("provider", "model", "base_url", "usage", "dollars"),
    [
        # gpt-4o: $2.50 in, $1.25 from the cache, $10 out, for a million tokens.
        pytest.param("OpenAI", "gpt-4o", None, (1000, 100), "0.0035", id="input and output"),
        pytest.param("OpenAI", "gpt-4o", None, (1000, 100, 400), "0.003", id="600 in, 400 from the cache, 100 out"),
        pytest.param("OpenAI", "gpt-4o", None, (0, 0), "0", id="nothing said"),
        pytest.param("OpenAI", "gpt-4o", None, (100, 0, 400), "0.0005", id="what was cached is not counted as input"),
        pytest.param("OpenAI", "gpt-4o", "https://api.openai.com/v1", (1000, 100), "0.0035", id="by its address"),
        pytest.param("AzureOpenAI", "gpt-4o", "https://shop.openai.azure.com", (1000, 100), "0.0035", id="Azure"),
        # claude-3-5-haiku: $0.80 in, $0.08 read and $1 written of the cache, $4 out.
        pytest.param(
            *("Anthropic", "claude-3-5-haiku-20241022", "http://gateway:4000"),
            *((1000, 100, 200, 300), "0.001116"),
            id="500 in, 200 read, 300 written, 100 out, through a gateway",
        ),
        pytest.param("Bedrock", "anthropic.claude-3-haiku-20240307-v1:0", None, (1000, 100), "0.000375", id="Bedrock"),
        pytest.param("OpenAI", "text-embedding-3-small", None, (1000, 0), "0.00002", id="an embedding"),
    ],
)
def test_a_call_costs_what_the_list_says(
    provider: str, model: str, base_url: str | None, usage: tuple[int, ...], dollars: str
) -> None:
    sent, answered, read, written = (*usage, 0, 0)[:4]
    cost = cost_usd(
        *(provider, model, base_url),
        input_tokens=sent,
        output_tokens=answered,
        cache_read_tokens=read,
        cache_write_tokens=written,
    )
    assert cost == Decimal(dollars)
    assert cost is not None
    assert cost.as_tuple().exponent == -9


@pytest.mark.parametrize(
    ("provider", "model", "base_url"),
    [
        pytest.param(
            "OpenAI", "gpt-5", "http://127.0.0.1:11434/v1", id="a loopback endpoint, whatever it calls its model"
        ),
        pytest.param("OpenAI", "gpt-5", "http://vllm.models:8000/v1", id="an endpoint in the cluster"),
        pytest.param(
            "OpenAI", "gpt-5", "http://localhost/api.openai.com/v1", id="an address that only mentions OpenAI's"
        ),
        pytest.param("OpenAI", "gpt-5", "", id="an empty address"),
        pytest.param("OpenAI", "no-such-model", None, id="a model nobody knows"),
        pytest.param("OpenAI", "claude-3-5-haiku-20241022", None, id="a model of another provider"),
        pytest.param("OpenAI", "", None, id="no name"),
        pytest.param("Scripted", "gpt-5", None, id="a provider nobody knows"),
        pytest.param("AzureOpenAI", "phi-4-reasoning:free", None, id="a model the list has without a price"),
        pytest.param("OpenAI", "text-embedding-3-small", None, id="a model without a price for what it answers"),
    ],
)
def test_no_known_price_is_none_and_never_zero(provider: str, model: str, base_url: str | None) -> None:
    assert cost_usd(provider, model, base_url, input_tokens=1000, output_tokens=1) is None
    assert not is_priced(provider, model, base_url)


def test_a_known_price_is_one() -> None:
    assert is_priced("OpenAI", "gpt-4o", None)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("0.003500000", "0.0035"),
        ("0E-9", "0"),
        ("-0.0", "0"),
        ("1E-9", "0.000000001"),
        ("1E+3", "1000"),
        ("100", "100"),
        ("12.50", "12.5"),
    ],
)
def test_decimals_are_written_plainly(value: str, text: str) -> None:
    assert decimal_text(Decimal(value)) == text
