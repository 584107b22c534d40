"""Compare published files, converted and loaded, with the PyTorch modules they came from.

Every layer and output is compared, at small unusual sizes and, in slow tests, at the published ones.
"""

import json
import re

import numpy as np
import pytest

import specjax

torch = pytest.importorskip("torch")

from checkpoints_convert import convert  # noqa: E402
from tests.checkpoints_convert import files  # noqa: E402
from tests.checkpoints_convert.comparing import (  # noqa: E402
    assert_close,
    difference,
    inputs_of,
    layer_names,
    run_ours,
    run_torch,
    spectra,
)


def converted(tmp_path, kind, real=False, **options):
    module = files.make(kind, real=real)
    convert(files.save(tmp_path / f"{kind}.ckpt", kind, module), tmp_path / kind, **options)
    return module, specjax.load(tmp_path / kind)


def outputs_of(kind, ours, layers):
    """Return our outputs by the names in the PyTorch modules."""
    if kind == "head":
        return {"labels": ours}
    if kind == "xp_autoencoder":
        return {"latent": layers["gaia_xp/backbone/bottleneck_norm"], "reconstructions": ours}
    if kind in ("lamost", "xp_transformer"):
        part = "lamost" if kind == "lamost" else "gaia_xp"
        return {"embedding": layers[f"{part}/backbone/final_layernorm"], "reconstructions": ours}
    return {"z_lamost": ours[0], "z_xp": ours[1], **ours[2]}


def check_layers(tmp_path, kind, n, real=False):
    """Compare every layer that both sides run, and every output; return the largest difference."""
    module, model = converted(tmp_path, kind, real)
    inputs = inputs_of(kind, n, model.config)
    out, theirs = run_torch(module, *inputs)
    result, ours = run_ours(kind, model, *inputs)
    names = layer_names(kind, model.config)
    pairs = {old: (ours[new], theirs[old]) for old, new in names.items() if old in theirs and new in ours}
    unseen = [name for name in parametrised(module) if name not in pairs and not NOT_RUN.search(name)]
    assert not unseen
    expected = {"labels": out} if kind == "head" else out
    found = outputs_of(kind, result, ours)
    assert found.keys() == expected.keys() - {"tokens"}
    pairs |= {name: (found[name], expected[name].numpy()) for name in found}
    for name, (a, b) in pairs.items():
        assert_close(a, b, name)
    return max(difference(a, b) for a, b in pairs.values())


# Torch's attention does not call its projections as modules; our SpecCLIP omits reconstruction layers.
NOT_RUN = re.compile(r"multihead_attn|encoder\.backbone\.(head|bottleneck_up|decoder_blocks|output_proj)")


def parametrised(module):
    kinds = torch.nn.Linear | torch.nn.LayerNorm | torch.nn.BatchNorm1d
    return [name for name, inner in module.named_modules() if isinstance(inner, kinds)]


@pytest.mark.parametrize("kind", files.KINDS)
def test_every_layer(tmp_path, kind):
    check_layers(tmp_path, kind, n=1 if kind in ("lamost", "pr") else 3)


@pytest.mark.slow
@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.parametrize("kind", files.KINDS)
def test_every_layer_at_the_published_sizes(tmp_path, kind, n):
    worst = check_layers(tmp_path, kind, n, real=True)
    print(f"{kind}, {n} spectra: largest difference {worst:.1e} of the largest value")


def public(kind, model, module, lamost, gaia_xp):
    """Return pairs (ours, theirs) of the outputs of the public methods, by name."""
    if kind == "lamost":
        out = run_torch(module, lamost)[0]
        return {
            "tokens": (model.tokens(lamost), out["embedding"]),
            "embed": (model.embed(lamost), out["embedding"].mean(1)),
            "reconstruct": (model.reconstruct(lamost, raw=True), out["reconstructions"]),
        }
    if kind in ("xp_transformer", "xp_autoencoder"):
        out = run_torch(module, gaia_xp)[0]
        embedded = out["latent"] if "latent" in out else out["embedding"].mean(1)
        rebuilt = model.reconstruct(gaia_xp, survey="gaia_xp", raw=True)
        return {
            "embed": (model.embed(gaia_xp, survey="gaia_xp"), embedded),
            "reconstruct": (rebuilt, out["reconstructions"]),
        }
    out, layers = run_torch(module, lamost, gaia_xp)
    pairs = {
        "tokens": (model.tokens(lamost), layers["lamost_lrs_encoder.backbone.final_layernorm"]),
        "z_lamost": (model.embed(lamost), out["z_lamost"]),
        "z_xp": (model.embed(gaia_xp, survey="gaia_xp"), out["z_xp"]),
    }
    if "lamost" in out:
        to_xp = model.translate(lamost, source="lamost", target="gaia_xp")
        to_lamost = model.translate(gaia_xp, source="gaia_xp", target="lamost")
        pairs |= {
            "lamost": (model.reconstruct(lamost, raw=True), out["lamost"]),
            "gaia_xp": (model.reconstruct(gaia_xp, survey="gaia_xp"), out["gaia_xp"]),
            "gaia_xp_cross": (to_xp, out["gaia_xp_cross"]),
            "lamost_cross": (to_lamost, out["lamost_cross"]),
        }
    return pairs


def check_public(tmp_path, kind, n, real=False):
    module, model = converted(tmp_path, kind, real)
    config = model.config
    lamost = spectra(n, config.specformer.num_pixels)
    gaia_xp = spectra(n, (config.xp_transformer or config.xp_autoencoder).num_pixels, 1)
    for name, (ours, theirs) in public(kind, model, module, lamost, gaia_xp).items():
        assert ours.shape == tuple(theirs.shape)
        assert_close(ours, theirs, name)


# One of each type is quick; the others take long to compile and differ only in their sizes.
@pytest.mark.parametrize(
    ("kind", "n"),
    [
        ("lamost", 1),
        ("xp_autoencoder", 9),
        *(
            pytest.param(kind, n, marks=pytest.mark.slow)
            for kind in ("xp_transformer", "base", "pr", "split")
            for n in (1, 9)
        ),
    ],
)
def test_public_methods(tmp_path, kind, n):
    check_public(tmp_path, kind, n)


@pytest.mark.slow
@pytest.mark.parametrize("kind", [kind for kind in files.KINDS if kind != "head"])
def test_public_methods_at_the_published_sizes(tmp_path, kind):
    check_public(tmp_path, kind, 1, real=True)


@pytest.mark.parametrize(("kind", "part"), [("lamost", "mlp1"), ("pr", "mlp2")])
def test_a_label_head_on_a_model(tmp_path, kind, part):
    check_head(tmp_path, kind, part)


@pytest.mark.slow
def test_a_label_head_on_a_model_at_the_published_sizes(tmp_path):
    check_head(tmp_path, "split", "mlp2", real=True)


def check_head(tmp_path, kind, part, real=False):
    head = files.make("head", real=real)
    path = files.save(tmp_path / "feh.pt", "head", head)
    width = files.sizes("head", real).projection.dim
    stats = {"mean": np.linspace(-1, 1, width).tolist(), "std": np.linspace(0.5, 2, width).tolist()}
    (tmp_path / "stats.json").write_text(json.dumps(stats))
    options = {"head": path, "stats": tmp_path / "stats.json", "labels": ["fe_h"]}
    module, model = converted(tmp_path, kind, real, **options)
    flux = spectra(3, model.config.specformer.num_pixels)
    encoder = module if kind == "lamost" else module.lamost_lrs_encoder
    features = run_torch(encoder, flux)[0]
    features = features["embedding"].mean(1) if kind == "lamost" else features
    x = (features - torch.tensor(stats["mean"])) / torch.tensor(stats["std"])
    assert_close(model.predict(flux, part)["fe_h"], head(x).detach()[:, 0])


def test_a_label_head_by_itself(tmp_path):
    head, model = converted(tmp_path, "head", labels=["teff"], head_name="mlp1")
    x = spectra(3, 24)
    assert_close(model.predict_from_features(x, "mlp1")["teff"], run_torch(head, x)[0][:, 0])


class NoContrast(torch.nn.Module):
    """How our models treat a flat spectrum: tokens of zeros, as for a standard deviation of 1."""

    def __init__(self, module):
        super().__init__()
        self.module = module
        module.preprocess = lambda flux: torch.zeros(len(flux), 146, 21)

    def forward(self, flux):
        return self.module(flux)["embedding"]


def test_a_flat_spectrum(tmp_path):
    """The published arithmetic divides by zero; ours feeds zeros to the network, in any batch."""
    module, model = converted(tmp_path, "lamost")
    flat, flux = np.full((1, 1462), 0.75, np.float32), spectra(2)
    assert torch.isnan(run_torch(module, flat)[0]["embedding"]).all()
    both = model.tokens(np.concatenate([flux[:1], flat, flux[1:]]))
    assert_close(both[[0, 2]], run_torch(module, flux)[0]["embedding"])
    expected = run_torch(NoContrast(module), flat)[0]
    assert_close(both[1:2], expected)
    assert_close(model.tokens(flat), expected)
