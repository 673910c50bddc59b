"""Breaking a fleet while it works: real Nginx, real servers, the real SDK.

`python -m tests.fleet.chaos` (`make chaos`) runs every scenario at length and writes
benchmarks/results/chaos.json; the tests beside it run the same scenarios briefly.
"""
