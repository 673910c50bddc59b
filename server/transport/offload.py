"""Work that grows with a request, on threads of its own: the event loop belongs to everybody.

Parsing, building texts and writing answers go through here once they are larger than
`SMALL_BYTES`. The threads are few, so that one caller's large requests leave the processor
to the tokenizer and the device, and they are no one else's, so that nothing queues behind
them but other large requests.
"""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import ParamSpec, TypeVar

__all__ = ["SMALL_BYTES", "by_size", "off_loop"]

SMALL_BYTES = 64 * 1024
"""Below this, handing work to a thread takes longer than the work."""
THREADS = 2

P = ParamSpec("P")
T = TypeVar("T")

_threads = ThreadPoolExecutor(THREADS, thread_name_prefix="transport")


async def off_loop(function: Callable[P, T], *arguments: P.args, **keywords: P.kwargs) -> T:
    """Call the function on one of the threads; raises what it raises."""
    loop = asyncio.get_running_loop()
    return await loop.run_in_executor(_threads, lambda: function(*arguments, **keywords))


async def by_size(size_bytes: int, function: Callable[P, T], *arguments: P.args, **keywords: P.kwargs) -> T:
    """Call the function here if what it works on is small, else on one of the threads."""
    if size_bytes < SMALL_BYTES:
        return function(*arguments, **keywords)
    return await off_loop(function, *arguments, **keywords)
