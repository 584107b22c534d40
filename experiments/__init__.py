"""Studies: scripts whose docstrings give the command and the expected outcome."""
