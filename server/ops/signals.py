"""Signals that reach the server whatever its event loop is doing.

asyncio's own handling writes the signal's number into the pipe that also wakes the loop up
for every `call_soon_threadsafe`. While the loop is busy that pipe fills, and a signal that
comes then is dropped for good. Here the interpreter writes into a pipe of our own, in the
moment the signal arrives, and a thread waits at its other end. Nothing is blocked or masked,
so child processes inherit nothing.
"""

import os
import signal
import threading
from collections.abc import Callable

__all__ = ["listen_to_signals", "obey_signals_as_first_process"]

STOPPING = (signal.SIGTERM, signal.SIGINT)


def listen_to_signals(on_signal: Callable[[signal.Signals], None]) -> None:
    """Call `on_signal` on a thread of its own for each SIGTERM and SIGINT; from the main thread only.

    Until this is called both end the process at once, as the system does by default.
    A SIGINT that is ignored, as in a shell's background, stays ignored.
    """
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    for number in STOPPING:
        if number is signal.SIGTERM or signal.getsignal(number) is not signal.SIG_IGN:
            # Python's own handler would wait for the main thread; that it exists is what fills the pipe.
            signal.signal(number, lambda *_: None)

    def watch() -> None:
        while numbers := os.read(reader, 64):
            for number in numbers:
                if number in STOPPING:
                    on_signal(signal.Signals(number))

    threading.Thread(target=watch, name="signals", daemon=True).start()


def obey_signals_as_first_process() -> None:
    """Let SIGTERM and SIGINT end the first process of a container, until `listen_to_signals` is called.

    The system spares a first process what it has no handler for: a container would ignore
    its stop until the model is loaded.
    """
    if os.getpid() == 1:
        listen_to_signals(lambda number: os._exit(128 + number))
