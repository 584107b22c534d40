"""Finished seeds of the configurations of a study, on disk until the study is complete.

A study that was killed resumes from them. A file holds some seeds of one configuration on one target, and is
complete or absent; with several processes each writes those that it has trained. The folder of files records
what they depend on, so that a run that would give other results is refused.
"""

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from specjax._version import __version__
from specjax.adapt.adaptation import AdaptationResult
from specjax.adapt.configuration import Configuration
from specjax.adapt.settings import AdaptConfig
from specjax.adapt.splits import Splits
from specjax.adapt.target import Target
from specjax.atomic import atomic_file, remove_folder
from specjax.checkpoints.trees import flatten, unflatten
from specjax.foundation import Foundation
from specjax.npz import NpzError, read_npz
from specjax.prepare.resume import begin_or_resume, check_resumable, parts_folder
from specjax.report.results import plain
from specjax.spectra import Spectra
from specjax.typing import AnyArray, IntArray

VERSION = 3
"""Version of the files; those of another version are not resumed."""

Seeds = dict[str, AnyArray]
"""Results of some seeds: arrays (s, ...) by name, and "seed", their rows in the splits of the study."""


class Parts:
    """The folder of finished seeds of a study."""

    def __init__(self, out: Path, record: Mapping[str, Any]) -> None:
        """Check that an unfinished run, if there is one, has the same record.

        Args:
            out: the run folder.
            record: what the results depend on, see `record_of`.

        Raises:
            ConfigError: it differs; the message names the first difference.
        """
        self.folder, self.record = parts_folder(Path(out)), dict(record)
        check_resumable(self.folder, self.record)

    def read(self, target: str, configuration: str, wanted: IntArray) -> Seeds | None:
        """Return those of the wanted seeds that are finished, None if there are none."""
        found: list[Seeds] = []
        for path in sorted((self.folder / target / configuration).glob("*.npz")):
            if (part := _read(path)) is not None:
                known = [part["seed"][:0], *(each["seed"] for each in found)]
                new = np.isin(part["seed"], wanted) & ~np.isin(part["seed"], np.concatenate(known))
                found.append({name: array[new] for name, array in part.items()})
        joined = joined_seeds(found)
        return joined if joined and len(joined["seed"]) else None

    def write(self, target: str, configuration: str, part: Seeds) -> None:
        """Keep finished seeds."""
        begin_or_resume(self.folder, self.record)
        name = f"{part['seed'][0]:06d}-{part['seed'][-1]:06d}.npz"
        arrays: dict[str, Any] = dict(part)
        with atomic_file(self.folder / target / configuration / name) as temporary:
            np.savez(temporary, **arrays)

    def remove(self) -> None:
        """Remove the folder when the study is complete."""
        remove_folder(self.folder)


def _read(path: Path) -> Seeds | None:
    """Read a file; None if it is damaged, so that its seeds are trained again."""
    try:
        return read_npz(path)
    except (OSError, NpzError):
        return None


def to_seeds(result: AdaptationResult, rows: IntArray) -> Seeds:
    """Return a result as arrays; `rows` are those of its seeds in the splits of the study."""
    leaves = {
        f"adapter/{name}": np.asarray(leaf) for name, leaf in flatten(result.adapters) if leaf is not None
    }
    chosen = {f"chosen/{name}": np.asarray(values) for name, values in result.chosen.items()}
    return {
        "seed": np.asarray(rows),
        "prediction": result.predictions,
        "unseen": result.unseen,
        **chosen,
        **leaves,
    }


def from_seeds(configuration: Configuration, seeds: Seeds) -> AdaptationResult:
    """Return the result of a configuration from the arrays of all seeds."""

    def part(kind: str) -> dict[str, AnyArray]:
        return {name.removeprefix(kind): array for name, array in seeds.items() if name.startswith(kind)}

    return AdaptationResult(
        configuration=configuration,
        predictions=seeds["prediction"],
        unseen=seeds["unseen"],
        adapters=unflatten(part("adapter/").items()),
        chosen=part("chosen/"),
    )


def joined_seeds(parts: Sequence[Seeds]) -> Seeds:
    """Join parts in the order of the seeds; {} if there are none."""
    full = [part for part in parts if part]
    if not full:
        return {}
    order = np.argsort(np.concatenate([part["seed"] for part in full]))
    return {name: np.concatenate([part[name] for part in full])[order] for name in full[0]}


def record_of(
    model: Foundation, targets: Sequence[Target], splits: Sequence[Splits], config: AdaptConfig
) -> dict[str, Any]:
    """Return what the results of any configuration depend on: version, options, and hashes as stamps."""
    stamps = {"the model": model.digest or ""}
    labels = list(dict.fromkeys(target.label for target in targets))
    for target, drawn in zip(targets, splits, strict=True):
        name = target.name if len(labels) == 1 else f"{target.name} with {target.label}"
        stamps[f"the data of {name}"] = _hash_of_target(target)
        rows = dataclasses.asdict(drawn)
        stamps[f"the splits of {name}"] = _hash(*(rows[part] for part in sorted(rows)))
    given = {"label": " ".join(labels), "dtype": model.dtype}
    options = {**given, **_flat(plain(dataclasses.asdict(config)))}
    return {"version": f"{__version__}/{VERSION}", "options": options, "stamps": stamps}


def hash_of_spectra(spectra: Spectra) -> str:
    """Return a hash of the pixels, their grid and the ids."""
    return _hash(spectra.wavelength, spectra.flux, spectra.ivar, spectra.mask, spectra.id)


def _hash_of_target(target: Target) -> str:
    sides = (target.labelled, target.unlabelled, target.unlabelled_xp)
    hashes = [hash_of_spectra(side) for side in sides if side is not None]
    optional = {"weight": target.weight, "truth_error": target.truth_error}
    given = {name: values for name, values in optional.items() if values is not None}
    about = np.array([*hashes, json.dumps(plain(target.preparation)), *given])
    return _hash(target.truth, target.fe_h, *given.values(), about)


def _hash(*arrays: AnyArray) -> str:
    digest = hashlib.sha256()
    for array in arrays:
        array = np.ascontiguousarray(array)
        digest.update(f"{array.dtype}{array.shape}".encode())
        digest.update(array.view(np.uint8).data if array.size else b"")
    return digest.hexdigest()


def _flat(tree: Any, name: str = "") -> dict[str, Any]:
    """Return the leaves of nested dicts and lists of JSON by names such as "joint.0.steps"."""
    if not isinstance(tree, dict | list):
        return {name: tree}
    leaves: dict[str, Any] = {}
    for key, value in tree.items() if isinstance(tree, dict) else enumerate(tree):
        leaves |= _flat(value, f"{name}.{key}" if name else str(key))
    return leaves
