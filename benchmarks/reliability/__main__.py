"""Measure how specjax fails, and write the counts as JSON.

    python -m benchmarks.reliability [--only flips edits peers kills limits] [--flips 200]

Flips and edits damage an example of each kind of file and count the outcomes; peers are other packages on
files of their own formats. Kills end commands at random times and continue them. Limits take away space on
the disk, the home folder and memory. All inputs are small and made here; the model is the one that ships.
The aim is zero under "silent", "crash", "damaged" and "wrong".
"""

import dataclasses
import json
import logging
import tempfile
from pathlib import Path
from typing import Any, Literal

import numpy as np
import tyro

from benchmarks.reliability import damage, kills, limits
from benchmarks.reliability.commands import make_commands
from benchmarks.reliability.kinds import make_kinds
from benchmarks.reliability.peers import make_peers
from specjax.atomic import atomic_file
from specjax.progress import say

Campaign = Literal["flips", "edits", "peers", "kills", "limits"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """What to run."""

    only: tuple[Campaign, ...] = ("flips", "edits", "peers", "kills", "limits")
    """campaigns to run"""
    flips: int = 200
    """flipped bits for each kind of file"""
    edits: int = 200
    """edits for each kind of file"""
    kills: int = 10
    """kills of each command, and of each of two processes that share the cache"""
    commands: tuple[str, ...] = ("prepare", "adapt", "predict", "pretrain")
    """commands to kill and to limit; predict uses the adapters of adapt"""
    memory: int = 3000
    """MB of address space in the campaign of limits"""
    seed: int = 0
    """random seed"""
    out: Path = Path("runs/reliability.json")
    """JSON file to write; what other campaigns wrote in it is kept"""


def main(options: Options) -> None:
    """Run the campaigns and write their counts."""
    logging.disable(logging.ERROR)  # of the readers, astropy and Orbax about damaged files
    found: dict[str, Any] = json.loads(options.out.read_text()) if options.out.exists() else {}
    with tempfile.TemporaryDirectory() as folder:
        for name in options.only:
            place = Path(folder) / name
            place.mkdir()
            campaign = {
                "flips": _damage,
                "edits": _damage,
                "peers": _peers,
                "kills": _kill,
                "limits": _limit,
            }[name]
            found[name] = found.get(name, {})
            for kind, counts in campaign(name, place, options):
                say(f"{name} {kind}: {json.dumps(counts)}")
                found[name][kind] = counts
                with atomic_file(options.out) as temporary:
                    temporary.write_text(json.dumps(found, indent=1) + "\n")


def _damage(name: str, place: Path, options: Options) -> Any:
    change, count = (damage.flip, options.flips) if name == "flips" else (damage.edit, options.edits)
    for kind, example in make_kinds(place).items():
        rng = np.random.default_rng(options.seed)
        yield kind, {"guarded": example.guarded, **damage.campaign(example, change, count, rng)}


def _peers(_: str, place: Path, options: Options) -> Any:
    for name, example in make_peers(place).items():
        rng = np.random.default_rng(options.seed)
        yield name, damage.campaign(example, damage.flip, options.flips, rng)


def _kill(_: str, place: Path, options: Options) -> Any:
    rng = np.random.default_rng(options.seed)
    yield "cache", kills.kill_cache(place, options.kills, rng)
    for name, command in make_commands(place).items():
        if name in options.commands:
            yield name, kills.kill_command(command, place, options.kills, rng)


def _limit(_: str, place: Path, options: Options) -> Any:
    for name, command in make_commands(place).items():
        if name in options.commands and name != "predict":
            yield name, limits.limit_command(command, place, options.memory)


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
