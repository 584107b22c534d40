"""How a run was made: its command, date, versions and device, as config.json of a run folder records them."""

import platform
import shlex
import sys
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from specjax._version import __version__

PACKAGES = ("jax", "jaxlib", "flax", "optax", "numpy", "scipy", "astropy")
"""Packages whose versions decide the numbers of a run."""


def made() -> dict[str, Any]:
    """Return command, date (UTC), versions, and the devices of JAX of this process."""
    import jax

    versions = {"specjax": __version__, "python": platform.python_version()}
    for name in PACKAGES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:  # an installation without metadata
            continue
    devices = jax.devices()
    return {
        "command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": versions,
        "devices": f"{len(devices)} x {devices[0].device_kind}",
    }
