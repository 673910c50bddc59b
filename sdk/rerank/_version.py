"""The version of this package, alone in a file so that building the wheel imports nothing else."""

__version__ = "0.1.0"
