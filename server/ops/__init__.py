"""What operators see: health, metrics, logs, signals."""
