"""What every test needs."""

import asyncio


def pytest_configure() -> None:
    """Leave the main thread without an event loop.

    On Python < 3.14 pytest-asyncio otherwise creates one while it looks for the loop it is about to replace, and never closes
    it: a ResourceWarning at the end of the session, which is an error here, if a test that is not async ran first.
    """
    asyncio.set_event_loop(None)
