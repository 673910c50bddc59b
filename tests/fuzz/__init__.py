"""Bad input, on the wire and through the API: the server lives, tells nothing, and serves others meanwhile.

`python -m tests.fuzz` (`make fuzz`) sends a hundred thousand cases; the tests beside it a few thousand.
"""
