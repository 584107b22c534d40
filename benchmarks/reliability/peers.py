"""The same damage to numbers in other formats, read by their own packages with their default options."""

import gzip
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from astropy.io import fits

from benchmarks.reliability.kinds import Content, Kind
from specjax.errors import DataError
from specjax.typing import AnyArray


def make_peers(place: Path) -> dict[str, Kind]:
    """Write an example of each format below a folder; what a package raises counts as a refusal."""
    numbers = np.random.default_rng(2).normal(size=(40, 30)).astype(np.float32)
    makers = (safetensors, torch, orbax, astropy, astropy_gz, astropy_checksum)
    return {maker.__name__: _refusing(maker(place, numbers)) for maker in makers}


def safetensors(place: Path, numbers: AnyArray) -> Kind:
    """Return a file read by `safetensors.numpy.load_file`."""
    from safetensors.numpy import load_file, save_file

    path = place / "a.safetensors"
    save_file({"w": numbers}, path)
    return Kind(files=[path], read=lambda: load_file(path), guarded="safetensors")


def torch(place: Path, numbers: AnyArray) -> Kind:
    """Return a file read by `torch.load`."""
    import torch

    path = place / "a.pt"
    torch.save({"w": torch.from_numpy(numbers)}, path)
    return Kind(files=[path], read=lambda: {"w": torch.load(path)["w"].numpy()}, guarded="torch")


def orbax(place: Path, numbers: AnyArray) -> Kind:
    """Return a folder read by Orbax's `StandardCheckpointer`."""
    import jax.numpy as jnp
    import orbax.checkpoint as ocp

    folder, state = place.absolute() / "orbax", {"w": jnp.asarray(numbers)}
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(folder, state)

    def read() -> Content:
        with ocp.StandardCheckpointer() as checkpointer:
            return {"w": np.asarray(checkpointer.restore(folder, state)["w"])}

    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return Kind(files=files, read=read, guarded="orbax-checkpoint")


def astropy(place: Path, numbers: AnyArray) -> Kind:
    """Return a file with checksums read by `astropy.io.fits.open`, which ignores them."""
    path = place / "a.fits"
    fits.PrimaryHDU(numbers).writeto(path, checksum=True)
    return Kind(files=[path], read=lambda: _image(path), guarded="astropy")


def astropy_gz(place: Path, numbers: AnyArray) -> Kind:
    """Return a gzipped file read by `astropy.io.fits.open`."""
    path = place / "b.fits.gz"
    fits.PrimaryHDU(numbers).writeto(place / "b.fits")
    path.write_bytes(gzip.compress((place / "b.fits").read_bytes(), mtime=0))
    return Kind(files=[path], read=lambda: _image(path), guarded="astropy")


def astropy_checksum(place: Path, numbers: AnyArray) -> Kind:
    """Return a file with checksums read by `astropy.io.fits.open(checksum=True)`; a warning is a refusal."""
    path = place / "c.fits"
    fits.PrimaryHDU(numbers).writeto(path, checksum=True)
    return Kind(files=[path], read=lambda: _image(path, checksum=True), guarded="astropy")


def _image(path: Path, **options: Any) -> Content:
    with warnings.catch_warnings():
        warnings.simplefilter("error" if options else "ignore")
        with fits.open(path, **options) as hdus:
            return {"w": np.array(hdus[0].data).astype(np.float32)}


def _refusing(kind: Kind) -> Kind:
    """Turn any error of a package into a refusal."""

    def read() -> Content:
        try:
            return kind.read()
        except Exception:
            raise DataError("refused") from None

    return Kind(files=kind.files, read=read, guarded=kind.guarded)
