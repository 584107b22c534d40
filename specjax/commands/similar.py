"""`specjax similar`: the nearest neighbours of spectra in a catalogue of vectors."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, arg

from specjax.commands.paths import check_exist, check_model, check_sources
from specjax.commands.reading import Reading
from specjax.progress import say


@dataclass(frozen=True, kw_only=True)
class Similar(Reading):
    """Find the spectra of a catalogue that are most similar to given ones.

    Similarity is the cosine of the angle between the vectors of a model. Up to 100,000 vectors are all
    compared; beyond, an index is made once and kept as CATALOGUE.hnsw (pip install 'specjax[similar]').
    """

    spectra: Annotated[Positional[tuple[Path, ...]], arg(metavar="SRC")] = ()
    """spectra whose neighbours are sought: survey files, folders, patterns and @FILE as for embed, or one
    file of vectors"""
    catalogue: Path
    """vectors to search: a file or folder that `specjax embed` has written"""
    out: Annotated[Path, arg(aliases=("-o",))]
    """table to write: .ecsv, .fits, .parquet or .csv"""
    id: tuple[str, ...] = ()
    """ids of spectra in the catalogue whose neighbours are sought, instead of SRC"""
    nearest: Annotated[int, arg(aliases=("-k",))] = 10
    """number of neighbours of each spectrum"""
    exact: bool = False
    """compare all vectors, however many: slower for many spectra, but it needs no index and misses nothing"""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """type of the towers' matrix products, as for embed"""

    def run(self) -> None:
        """Find the neighbours and print the path of the table."""
        check_exist(catalogue=self.catalogue)
        check_sources([*self.spectra, self.catalogue], self.out)
        check_model(self.model)
        from specjax.cache import use_compilation_cache

        use_compilation_cache()
        from specjax.pipeline.similar import find_similar

        find_similar(
            catalogue=self.catalogue,
            out=self.out,
            spectra=self.spectra,
            ids=self.id,
            nearest=self.nearest,
            exact=self.exact,
            dtype=self.dtype,
            say=say,
            **self.reading(),
        )
        print(self.out)
