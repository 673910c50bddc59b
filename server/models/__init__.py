"""Checkpoints: load, tokenise, score. Everything that knows a tensor lives here."""
