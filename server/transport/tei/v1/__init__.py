"""Generated from proto/tei/v1 by sdk/generate.py."""
