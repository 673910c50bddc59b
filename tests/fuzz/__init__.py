"""Bad input and large requests: the server lives, tells nothing, and serves others meanwhile.

`python -m tests.fuzz` (`make fuzz`) sends a hundred thousand cases; the tests beside it a few thousand.
Whoever adds a field, a path or a dialect to the server adds its largest values to `costly_*.py`.
"""
