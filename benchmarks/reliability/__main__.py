"""Measure how specjax fails, and write the counts as JSON.

    python -m benchmarks.reliability [--only flips edits peers cache kills limits] [--flips 200]

Flips and edits damage an example of each kind of file and count the outcomes; peers are other packages on
files of their own formats. Cache kills two processes that share features. Kills end commands at random times,
and before changes of their files, and continue them. Limits take away space on the disk, permissions, the
home folder and memory. All inputs are small and made here; the model is the one that ships.
The aim is zero under "silent", "crash", "damaged" and "wrong", and no faults.
"""

import dataclasses
import json
import logging
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import tyro

from benchmarks.reliability import damage, kills
from benchmarks.reliability.commands import environment_of, make_commands
from benchmarks.reliability.forks import forking
from benchmarks.reliability.kinds import make_kinds
from benchmarks.reliability.limits import limit_command, make_limits
from benchmarks.reliability.peers import make_peers
from specjax.atomic import atomic_file
from specjax.progress import say

Campaign = Literal["flips", "edits", "peers", "cache", "kills", "limits"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """What to run."""

    only: tuple[Campaign, ...] = get_args(Campaign)
    """campaigns to run"""
    flips: int = 200
    """flipped bits for each kind of file"""
    edits: int = 200
    """edits for each kind of file"""
    kinds: tuple[str, ...] = ()
    """kinds of files to damage, such as prepared; by default all"""
    kills: int = 40
    """kills of each command at random times, and of the processes that share the cache"""
    changes: int = 40
    """kills of each command before changes of its files, at most one before each"""
    commands: tuple[str, ...] = ("prepare", "adapt", "predict", "pretrain")
    """commands to kill and to limit; predict needs the adapters of adapt, which runs for it"""
    memory: int = 3000
    """MB of address space in the campaign of limits"""
    cache: Path | None = None
    """folder of compiled programs and features to share with other runs; by default each has its own"""
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
                "cache": _cache,
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
        if options.kinds and kind not in options.kinds:
            continue
        rng = np.random.default_rng(options.seed)
        yield kind, {"guarded": example.guarded, **damage.campaign(example, change, count, rng)}


def _peers(_: str, place: Path, options: Options) -> Any:
    for name, example in make_peers(place).items():
        rng = np.random.default_rng(options.seed)
        yield name, damage.campaign(example, damage.flip, options.flips, rng)


def _cache(_: str, place: Path, options: Options) -> Any:
    with forking(environment_of(options.cache or place / "cache")) as context:
        rng = np.random.default_rng(options.seed)
        yield "features", kills.kill_cache(context, place / "features", options.kills, rng)


def _trials(place: Path, options: Options) -> Iterator[tuple[str, kills.Trial]]:
    """Run the commands undisturbed; yield those of the options, by name."""
    with forking(environment_of(options.cache or place / "cache")) as context:
        for name, command in make_commands(place, options.commands).items():
            say(f"{name}: two undisturbed runs")
            trial = kills.Trial(command, place / name, context)
            if name in options.commands:
                yield name, trial


def _kill(_: str, place: Path, options: Options) -> Any:
    for name, trial in _trials(place, options):
        rng = np.random.default_rng(options.seed)
        about = {"seconds of processor time": round(trial.seconds, 2)}
        yield f"{name} at random", about | kills.kill_at_random(trial, options.kills, rng)
        yield f"{name} at changes", kills.kill_at_changes(trial, options.changes, rng)


def _limit(_: str, place: Path, options: Options) -> Any:
    for name, trial in _trials(place, options):
        for lack, limit in make_limits(place, options.memory).items():
            ending = limit_command(trial.command, trial.place, limit, trial.reference, trial.context)
            yield f"{name} without {lack}", ending


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
