"""Training: losses, the partitioned optimizer, and the compiled loop over steps and seeds."""
