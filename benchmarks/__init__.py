"""Benchmarks of specjax on the device that JAX finds: `python -m benchmarks`."""
