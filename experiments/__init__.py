"""The studies: one script each, with its command and the result to expect in its docstring."""
