"""Run a command of specjax and print how long its compilations took.

`python -m benchmarks.compilations adapt ...` runs `specjax adapt ...`; the last line of its output is JSON:
the number of programs, the seconds of the longest, and of all. A program from the compilation cache counts
with the time that it takes to read it.
"""

import json
import sys

from specjax.cli import main as specjax

_COMPILATION = "/jax/core/compile/backend_compile_duration"


def main(arguments: list[str]) -> int:
    """Run the command, print the compilations and return the exit status."""
    from jax import monitoring

    seconds: list[float] = []

    def listen(event: str, duration_secs: float, **_: str | int) -> None:
        if event == _COMPILATION:
            seconds.append(duration_secs)

    monitoring.register_event_duration_secs_listener(listen)
    status = specjax(arguments)
    print(json.dumps({"programs": len(seconds), "longest": max(seconds, default=0.0), "all": sum(seconds)}))
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
