"""The key table, which maps the tensors of the published files to parameters of specjax.

For each network, one function lists the rows for the sizes in a `ModelConfig`; the same rows serve to read
and to write files. Linear weights (out, in) in PyTorch are kernels (in, out) here (`transpose`), and the
joint input projection of an attention is split into three parameters (`rows`). Nothing else differs.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from specjax.config import LabelHeadConfig, ModelConfig, SpecFormerConfig, XPAutoencoderConfig
from specjax.errors import ModelError
from specjax.typing import AnyArray

# Keys that are not parameters: the number of training batches of each BatchNorm. They are kept in the record
# of the conversion and written back on export.
IGNORED = re.compile(r".*\.num_batches_tracked")

_SHOWN = 8  # keys of each kind in an error message


@dataclass(frozen=True)
class Row:
    """The correspondence of one parameter to a tensor of the published file.

    Attributes:
        key: Name of the tensor in the file.
        path: Path of the parameter.
        shape: Shape of the whole tensor in the file.
        transpose: Whether the parameter is transposed.
        rows: Rows (start, stop) of the tensor that form the parameter; None for all.
    """

    key: str
    path: str
    shape: tuple[int, ...]
    transpose: bool = False
    rows: tuple[int, int] | None = None

    def read(self, tensor: AnyArray) -> AnyArray:
        """Return the parameter as a view of the tensor."""
        piece = tensor if self.rows is None else tensor[slice(*self.rows)]
        return piece.T if self.transpose else piece

    def write(self, parameter: AnyArray, tensor: AnyArray) -> None:
        """Write the parameter to its place in the tensor; the inverse of `read`."""
        target = tensor if self.rows is None else tensor[slice(*self.rows)]
        target[...] = parameter.T if self.transpose else parameter


def table(config: ModelConfig, parts: Iterable[str]) -> list[Row]:
    """List the rows of parts: "lamost" and "gaia_xp" (bare encoders), "specclip", "mlp1", "mlp2"."""
    rows: list[Row] = []
    for part in parts:
        match part:
            case "lamost":
                rows += specformer("", "lamost/backbone", config.specformer)
            case "gaia_xp" if config.xp_transformer is not None:
                rows += specformer("", "gaia_xp/backbone", config.xp_transformer)
            case "gaia_xp":
                rows += autoencoder("", "gaia_xp/backbone", config.xp_autoencoder)
            case "specclip":
                rows += specclip(config)
            case "mlp1" | "mlp2":
                width = config.specformer.dim if part == "mlp1" else config.projection.dim
                rows += label_head(part, width, config.head)
            case _:
                raise ValueError(part)
    return rows


def specformer(prefix: str, path: str, config: SpecFormerConfig) -> Iterator[Row]:
    """Yield the rows of the masked transformer of LAMOST or Gaia XP."""
    dim = config.dim
    yield from _linear(f"{prefix}data_embed", f"{path}/data_embed", config.token_dim, dim)
    shape = (config.max_len, dim)
    yield Row(f"{prefix}position_embed.weight", f"params/{path}/position_embed/embedding", shape)
    for i in range(config.num_layers):
        old, new = f"{prefix}blocks.{i}", f"{path}/blocks_{i}"
        yield from _layer_norm(f"{old}.ln1", f"{new}/ln1", dim)
        for name, outputs in (("q_proj", dim), ("kv_proj", 2 * dim), ("out_proj", dim)):
            yield from _linear(f"{old}.attention.{name}", f"{new}/attention/{name}", dim, outputs)
        yield from _layer_norm(f"{old}.ln2", f"{new}/ln2", dim)
        yield from _linear(f"{old}.mlp.0", f"{new}/mlp/encoder", dim, config.mlp_dim)
        yield from _linear(f"{old}.mlp.2", f"{new}/mlp/decoder", config.mlp_dim, dim)
    yield from _layer_norm(f"{prefix}final_layernorm", f"{path}/final_layernorm", dim)
    yield from _linear(f"{prefix}head", f"{path}/head", dim, config.token_dim)


def autoencoder(prefix: str, path: str, config: XPAutoencoderConfig) -> Iterator[Row]:
    """Yield the rows of the Gaia XP autoencoder."""
    pixels, width, latent = config.num_pixels + 2, config.hidden_dim, config.latent_dim
    hidden = config.expansion * width
    yield from _linear(f"{prefix}input_proj", f"{path}/input_proj", pixels, width)
    for stack in ("encoder", "decoder"):
        for i in range(config.num_blocks):
            old, new = f"{prefix}{stack}_blocks.{i}", f"{path}/{stack}_blocks_{i}"
            yield from _linear(f"{old}.mlp.0", f"{new}/mlp/encoder", width, hidden)
            yield from _linear(f"{old}.mlp.3", f"{new}/mlp/decoder", hidden, width)
            yield from _layer_norm(f"{old}.norm", f"{new}/norm", width)
    yield from _linear(f"{prefix}bottleneck_down", f"{path}/bottleneck_down", width, latent)
    yield from _layer_norm(f"{prefix}bottleneck_norm", f"{path}/bottleneck_norm", latent)
    yield from _linear(f"{prefix}bottleneck_up", f"{path}/bottleneck_up", latent, width)
    yield from _linear(f"{prefix}output_proj", f"{path}/output_proj", width, pixels)


def specclip(config: ModelConfig) -> Iterator[Row]:
    """Yield the rows of both towers with their projections and of the decoders, if any."""
    lamost, xp = "lamost_lrs_encoder.", "gaia_xp_encoder."
    yield from specformer(f"{lamost}backbone.", "lamost/backbone", config.specformer)
    yield from autoencoder(f"{xp}backbone.", "gaia_xp/backbone", config.xp_autoencoder)
    projection = config.projection
    for part, dim in zip(projection_parts(config), projection.dims, strict=True):
        pool, hidden = f"{part}attention" if part else "cross_attention", projection.mlp_expansion * dim
        yield from _attention(f"{lamost}{pool}", f"lamost/projection/{pool}", dim, config.specformer.dim)
        yield from _linear(f"{xp}{part}projection", f"gaia_xp/projection/{part}projection",
                           config.xp_autoencoder.latent_dim, dim)  # fmt: skip
        old, new = f"{xp}{part}feature_mlp", f"gaia_xp/projection/{part}feature_mlp"
        yield from _linear(f"{old}.0", f"{new}/encoder", dim, projection.feature_hidden)
        yield from _layer_norm(f"{old}.1", f"{new}/norm_hidden", projection.feature_hidden)
        yield from _linear(f"{old}.3", f"{new}/decoder", projection.feature_hidden, dim)
        yield from _layer_norm(f"{old}.4", f"{new}/norm_out", dim)
        for old, new in ((lamost, "lamost"), (xp, "gaia_xp")):
            mlp = f"{new}/projection/{part}mlp"
            yield from _linear(f"{old}{part}mlp.encoder", f"{mlp}/encoder", dim, hidden)
            yield from _linear(f"{old}{part}mlp.decoder", f"{mlp}/decoder", hidden, dim)
    if config.decoder is not None:
        sizes = (config.decoder.lamost_hidden, config.specformer.num_pixels)
        yield from _decoders("lamost_lrs", "lamost", config, *sizes)
        sizes = (config.decoder.gaia_xp_hidden, config.xp_autoencoder.num_pixels)
        yield from _decoders("gaia_xp", "gaia_xp", config, *sizes)


def projection_parts(config: ModelConfig) -> tuple[str, ...]:
    """Return the prefixes of the projection networks: "", or "shared_" and "private_"."""
    return ("shared_", "private_") if config.projection.private_dim else ("",)


def label_head(part: str, inputs: int, config: LabelHeadConfig) -> Iterator[Row]:
    """Yield the rows of a label head, a Sequential of (Linear, BatchNorm, ReLU, Dropout)."""
    if config.members > 1:
        raise ModelError(f"head {part!r} has {config.members} members, but a published file has one")
    for i, width in enumerate((*config.hidden_dims, config.num_labels)):
        yield from _linear(f"network.{4 * i}", f"{part}/dense_{i}", inputs, width)
        if i < len(config.hidden_dims):
            yield from _batch_norm(f"network.{4 * i + 1}", f"{part}/norm_{i}", width)
        inputs = width


def _decoders(old: str, new: str, config: ModelConfig, hidden: tuple[int, ...], pixels: int) -> Iterator[Row]:
    shared, private = config.projection.shared_dim, config.projection.private_dim
    if private:
        own, path = f"{old}_decoder", f"{new}_decoder"
        yield from _linear(f"{own}.shared_proj", f"{path}/shared_proj", shared, pixels)
        yield from _linear(f"{own}.private_proj", f"{path}/private_proj", private, pixels)
        yield from _linear(f"{own}.final_layer.0", f"{path}/final_0", 2 * pixels, 2 * pixels)
        yield from _linear(f"{own}.final_layer.2", f"{path}/final_1", 2 * pixels, pixels)
    for name in ("cross_decoder",) if private else ("decoder", "cross_decoder"):
        inputs = shared
        # A Sequential of (Linear, GELU, BatchNorm, Dropout).
        for i, width in enumerate((*hidden, pixels)):
            key, path = f"{old}_{name}.decoder", f"{new}_{name}"
            yield from _linear(f"{key}.{4 * i}", f"{path}/dense_{i}", inputs, width)
            if i < len(hidden):
                yield from _batch_norm(f"{key}.{4 * i + 2}", f"{path}/norm_{i}", width)
            inputs = width


def _attention(old: str, new: str, dim: int, inputs: int) -> Iterator[Row]:
    """Yield the rows of attention pooling; PyTorch joins q, k and v if keys and queries have equal widths."""
    yield Row(f"{old}.query", f"params/{new}/query", (1, 1, dim))
    mha = f"{old}.multihead_attn"
    for i, name in enumerate("qkv"):
        rows, path = (i * dim, (i + 1) * dim), f"params/{new}/{name}_proj"
        if dim == inputs:
            yield Row(f"{mha}.in_proj_weight", f"{path}/kernel", (3 * dim, dim), True, rows)
        else:
            shape = (dim, dim if name == "q" else inputs)
            yield Row(f"{mha}.{name}_proj_weight", f"{path}/kernel", shape, True)
        yield Row(f"{mha}.in_proj_bias", f"{path}/bias", (3 * dim,), False, rows)
    yield from _linear(f"{mha}.out_proj", f"{new}/out_proj", dim, dim)
    yield from _layer_norm(f"{old}.layernorm", f"{new}/layernorm", dim)


def _linear(key: str, path: str, inputs: int, outputs: int) -> Iterator[Row]:
    yield Row(f"{key}.weight", f"params/{path}/kernel", (outputs, inputs), transpose=True)
    yield Row(f"{key}.bias", f"params/{path}/bias", (outputs,))


def _layer_norm(key: str, path: str, dim: int) -> Iterator[Row]:
    yield Row(f"{key}.weight", f"params/{path}/scale", (dim,))
    yield Row(f"{key}.bias", f"params/{path}/bias", (dim,))


def _batch_norm(key: str, path: str, dim: int) -> Iterator[Row]:
    yield from _layer_norm(key, path, dim)
    yield Row(f"{key}.running_mean", f"batch_stats/{path}/mean", (dim,))
    yield Row(f"{key}.running_var", f"batch_stats/{path}/var", (dim,))


def check(what: str, shapes: Mapping[str, tuple[int, ...]], rows: Iterable[Row]) -> None:
    """Compare the keys and shapes of a file with the table; `what` names the file in messages.

    Raises:
        ModelError: Keys are missing, unknown or of another shape; one line names all of them.
    """
    expected = {row.key: row.shape for row in rows}
    unknown = [key for key in shapes if key not in expected and not IGNORED.fullmatch(key)]
    problems = {
        "missing": [key for key in expected if key not in shapes],
        "unknown": unknown,
        "of another shape": [
            f"{key} is {list(shapes[key])}, not {list(shape)}"
            for key, shape in expected.items()
            if key in shapes and shapes[key] != shape
        ],
    }
    found = [f"{len(keys)} {kind}: {_shorten(keys)}" for kind, keys in problems.items() if keys]
    if found:
        raise ModelError(f"{what} does not have the published keys; " + "; ".join(found))


def _shorten(keys: list[str]) -> str:
    more = f" and {len(keys) - _SHOWN} more" if len(keys) > _SHOWN else ""
    return ", ".join(key[:200] for key in keys[:_SHOWN]) + more
