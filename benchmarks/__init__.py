"""Side by side against peers, one command: `python -m benchmarks`."""
