"""`specjax check-published`: run the published SpecCLIP weights on the authors' test data."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from tyro.conf import arg

from specjax.commands.options_file import FromFile
from specjax.errors import ModelError
from specjax.progress import say

if TYPE_CHECKING:
    from specjax.pipeline.published import Published
    from specjax.report.agreement import Agreement


@dataclass(frozen=True, kw_only=True)
class CheckPublished(FromFile):
    """Run the published SpecCLIP weights on the authors' test data, and print agreement and labels.

    Fetches about 1.2 GB of weights and 10 MB of spectra on first use. The exit status is 1 if a translated or
    reconstructed spectrum, a search for partners, or labels from both surveys are no better than chance.
    """

    weights: str = "astroshawn/SpecCLIP"
    """repository of the hub, or folder, with the published files"""
    data: str = "astroshawn/SpecCLIP-TestData-Small"
    """repository, folder or file with pairs of LAMOST and Gaia XP spectra"""
    models: tuple[Literal["pr", "split"], ...] = ("pr", "split")
    """published models to run"""
    limit: int = 256
    """number of pairs, at most"""
    out: Annotated[Path | None, arg(aliases=("-o",))] = None
    """table of the labels of each star to write"""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """type of the towers' matrix products: auto is bfloat16 on a GPU that is fast in it, else float32"""

    def run(self) -> None:
        """Run the models and print what they give; raise ModelError if something does not agree."""
        from specjax.cache import use_compilation_cache
        from specjax.overwrite import check_replaceable

        if self.out is not None:
            check_replaceable(self.out)
        use_compilation_cache()
        from checkpoints_convert import convert
        from specjax.pipeline.published import check_published
        from specjax.report.agreement import failed
        from specjax.surveys.io.tables import write_table

        found = check_published(
            convert=convert,
            weights=self.weights,
            data=self.data,
            models=self.models,
            limit=self.limit,
            dtype=self.dtype,
            say=say,
        )
        if self.out is not None:
            write_table(self.out, {"id": found.id, **found.labels})
        _print(found)
        wrong = failed([row for rows in found.agreement.values() for row in rows])
        if wrong:
            raise ModelError(
                f"{len(wrong)} comparisons are no better than their reference: "
                + "; ".join(row.what for row in wrong)
            )


def _print(found: "Published") -> None:
    from specjax.report.agreement import percentiles

    for name, rows in found.agreement.items():
        if rows:
            print(f"{name}, {len(found.id)} pairs, 95% intervals over stars")
            print("\n".join(_lines(rows)))
    if found.labels:
        print("labels, percentiles 16, 50 and 84 over stars")
        print("\n".join(_spread(percentiles(found.labels))))


def _lines(rows: "Sequence[Agreement]") -> list[str]:
    width = max(len(row.what) for row in rows)
    return [
        f"  {row.what:<{width}}  {row.value:8.4f} [{row.low:.4f}, {row.high:.4f}]"
        + (f"   {row.reference_is} {row.reference:.4f}" if row.reference_is else "")
        for row in rows
    ]


def _spread(values: Mapping[str, tuple[float, float, float]]) -> list[str]:
    width = max(map(len, values))
    return [f"  {name:<{width}}  {a:8.3f} {b:8.3f} {c:8.3f}" for name, (a, b, c) in values.items()]
