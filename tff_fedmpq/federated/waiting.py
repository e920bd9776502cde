"""Waiting for what TFF's program managers do asynchronously."""

import asyncio
from collections.abc import Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

_T = TypeVar("_T")


def wait_for(coroutine: Coroutine[Any, Any, _T]) -> _T:
    """Returns a coroutine's result, or raises what it raises."""
    # In a thread of its own: that of a notebook has an event loop already.
    with ThreadPoolExecutor(max_workers=1) as executor:
        return executor.submit(lambda: asyncio.run(coroutine)).result()
