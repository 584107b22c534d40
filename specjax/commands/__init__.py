"""The subcommands of `specjax`, one per module; they parse options, call the library and print results."""
