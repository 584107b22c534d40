"""The subcommands of `specjax`, one a file: each parses, calls and prints; no logic."""
