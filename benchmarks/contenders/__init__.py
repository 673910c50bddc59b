"""What is compared: each module makes one contender for `benchmarks.protocol.race`."""
