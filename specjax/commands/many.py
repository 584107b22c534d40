"""Options of the commands that process any number of spectra."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from tyro.conf import Positional, arg

from specjax.commands.paths import check_model, check_sources
from specjax.commands.reading import Reading
from specjax.errors import ConfigError
from specjax.progress import say


@dataclass(frozen=True, kw_only=True)
class ManySpectra(Reading):
    """Files, folders and lists of spectra, and how they are read."""

    spectra: Annotated[Positional[tuple[Path, ...]], arg(metavar="SRC")] = ()
    """survey files, folders that are searched for them to any depth, patterns such as 'night*/*.fits', and
    @FILE, a text file with one of these per line; at least one"""
    lists: Annotated[tuple[Path, ...], arg(name="list")] = ()
    """text files of spectra, the same as @FILE"""
    workers: int | None = None
    """number of processes that read and preprocess, by default the number of cores"""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """type of the towers' matrix products: auto is bfloat16 on a GPU that is fast in it, else float32"""
    dask: str | None = None
    """compute on a Dask cluster: local:N for N processes of this machine, the address of a scheduler such as
    tcp://HOST:8786, or a scheduler file"""
    partitioned: bool = False
    """write a folder of Parquet files, OUT/part-00000.parquet and so on, instead of one file"""
    dry_run: bool = False
    """only print what would be done: numbers of files and chunks, and what would be resumed"""

    def options(self, command: str, out: Path) -> dict[str, Any]:
        """Return these options as arguments of the functions of `specjax.pipeline`.

        Args:
            command: its name, for messages.
            out: the file that it writes.

        Raises:
            ConfigError: there are no spectra, no workers, or workers of two kinds, or the output is an input.
            DataError: spectra or the model do not exist.
        """
        sources = (*self.spectra, *(Path(f"@{path}") for path in self.lists))
        if not sources:
            raise ConfigError(f"{command} needs spectra: give survey files, folders or lists of them")
        if self.workers is not None and self.workers < 1:
            raise ConfigError(f"{command} needs at least one worker, not {self.workers}")
        if self.workers is not None and self.dask is not None:
            raise ConfigError(
                f"{command} takes --workers or --dask: a Dask worker reads and preprocesses, too"
            )
        check_model(self.model)
        check_sources(sources, out)
        return {
            "spectra": sources,
            **self.reading(),
            "workers": self.workers,
            "dtype": self.dtype,
            "dask": self.dask,
            "partitioned": self.partitioned,
            "dry_run": self.dry_run,
            "say": print if self.dry_run else say,
        }
