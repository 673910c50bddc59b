"""Admission, pair cache, scheduling and the device worker: pairs and tokens, no protocols."""
