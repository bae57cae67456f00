"""What is made of kopf's parts."""

from dalang_operator.kopf_app import NoMemories


async def test_kopf_remembers_no_object() -> None:
    memories = NoMemories()
    body = {"metadata": {"uid": "u1"}}

    first, second = await memories.recall(body), await memories.recall(body, noticed_by_listing=True)

    assert first is not second
    assert not list(memories.iter_all_memories())
