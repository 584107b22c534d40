"""Training: losses, the partitioned optimizer, the vmapped and scanned loop, pretraining and adaptation."""
