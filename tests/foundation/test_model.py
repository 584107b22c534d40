import dataclasses
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from specjax import devices, lora
from specjax.adapt.forward import predict_label
from specjax.errors import ConfigError, DataError, ModelError
from specjax.foundation import Foundation, inference, load
from specjax.foundation import model as model_module
from specjax.models import LabelHead, SpecCLIP, SpecFormer, XPAutoencoder, tokenise, xp_vector
from specjax.models.label_head import init_residual
from tests.models.tiny import TINY, on_grid, random_like, random_system

LAMOST, XP = TINY.specformer.num_pixels, TINY.xp_autoencoder.num_pixels
STATS = {
    "mlp1": {
        "feature_mean": 0.3,
        "feature_std": 2.0,
        "label_mean": [5000.0, -0.5],
        "label_std": [600.0, 0.4],
    },
    "mlp2": {"label_mean": [5000.0, -0.5], "label_std": [600.0, 0.4]},
}
# The same arithmetic in another batch shape and program: float32 sums may be ordered differently.
CLOSE = {"rtol": 1e-4, "atol": 1e-5}


def spectra(n, survey="lamost", seed=0):
    return np.random.default_rng(seed).normal(0.9, 0.1, (n, LAMOST if survey == "lamost" else XP))


@pytest.fixture(scope="module")
def model():
    stats = {head: {name: np.asarray(v, np.float32) for name, v in s.items()} for head, s in STATS.items()}
    return Foundation(config=TINY, variables=random_system(), stats=stats)


@pytest.fixture(scope="module")
def bare(model):
    """The two encoders alone."""
    params = {name: {"backbone": model.params[name]["backbone"]} for name in ("lamost", "gaia_xp")}
    return Foundation(config=TINY, variables={"params": params})


def test_embeddings_are_what_the_modules_give(model, bare):
    lamost, gaia_xp = (spectra(3, s).astype(np.float32) for s in ("lamost", "gaia_xp"))

    @jax.jit
    def modules(lamost, gaia_xp):
        backbones = {name: {"params": model.params[name]["backbone"]} for name in ("lamost", "gaia_xp")}
        tokens = SpecFormer(TINY.specformer).apply(backbones["lamost"], tokenise(lamost, TINY.specformer))
        latent = XPAutoencoder(TINY.xp_autoencoder).apply(backbones["gaia_xp"], xp_vector(gaia_xp))
        return tokens, latent, *SpecCLIP(TINY).apply(model.variables, lamost, gaia_xp)[:2]

    tokens, latent, z_lamost, z_xp = modules(lamost, gaia_xp)
    np.testing.assert_allclose(model.embed(lamost), z_lamost, **CLOSE)
    np.testing.assert_allclose(model.embed(gaia_xp, "gaia_xp"), z_xp, **CLOSE)
    np.testing.assert_allclose(model.tokens(lamost), tokens, **CLOSE)
    np.testing.assert_allclose(model.mean_token(lamost), tokens.mean(1), **CLOSE)
    np.testing.assert_allclose(bare.embed(lamost), tokens.mean(1), **CLOSE)
    np.testing.assert_allclose(bare.embed(gaia_xp, "gaia_xp"), latent, **CLOSE)


def test_outputs_are_float32_arrays_for_any_input_type(model):
    flux = spectra(2)
    expected = model.embed(flux)
    assert isinstance(expected, np.ndarray)
    assert expected.dtype == np.float32
    for same in (flux.tolist(), jnp.asarray(flux), flux.astype(np.float32)):
        np.testing.assert_array_equal(model.embed(same), expected)


def test_any_number_of_rows_without_recompiling(model):
    flux = spectra(sum(inference.batch_sizes(TINY, "float32", None)) + 65)
    whole = model.embed(flux)
    compiled = inference._run._cache_size()
    for n in (1, 2, 8, 9, 64, 65, 72, 73):
        part = model.embed(flux[:n])
        assert part.shape == (n, TINY.projection.dim)
        np.testing.assert_allclose(part, whole[:n], **CLOSE)
    assert inference._run._cache_size() == compiled


@pytest.mark.parametrize("sizes", [(8,), (8, 64), (8, 64, 1024)])
def test_no_number_of_rows_costs_twice_its_work(sizes):
    for rows in range(1, 2 * sizes[-1] + 1):
        left, done = rows, 0
        while left > 0:
            size = inference.next_size(left, sizes)
            left, done = left - size, done + size
        assert done < max(2 * rows, sizes[0] + 1)


@pytest.mark.parametrize(
    ("fixture", "survey", "shapes"),
    [
        ("model", "lamost", [(2, LAMOST), (2, LAMOST)]),
        ("model", "gaia_xp", [(2, XP), (2, XP)]),
        ("bare", "lamost", [(2, LAMOST), (2, 13, 7)]),
        ("bare", "gaia_xp", [(2, XP), (2, XP + 2)]),
    ],
)
def test_reconstruction_shapes(fixture, survey, shapes, request):
    model, flux = request.getfixturevalue(fixture), spectra(2, survey)
    assert [model.reconstruct(flux, survey, raw=raw).shape for raw in (False, True)] == shapes


def test_lamost_reconstruction_is_in_units_of_the_input(model):
    """The decoder sees only the standardised flux, so a change of scale passes through to the output."""
    flux = spectra(2)
    once, scaled = model.reconstruct(flux), model.reconstruct(3 * flux)
    standardised = model.reconstruct(flux, raw=True)
    mean, std = flux.mean(1, keepdims=True), flux.std(1, ddof=1, keepdims=True)
    np.testing.assert_allclose(once, mean + std * standardised, rtol=1e-4, atol=1e-5)  # float32
    assert scaled.mean() / once.mean() == pytest.approx(3, rel=0.2)  # log10(std) enters the tokens too


@pytest.mark.parametrize(
    ("source", "target", "pixels"), [("lamost", "gaia_xp", XP), ("gaia_xp", "lamost", LAMOST)]
)
def test_translation(model, source, target, pixels):
    assert model.translate(spectra(2, source), source=source, target=target).shape == (2, pixels)


@pytest.mark.parametrize("head", ["mlp1", "mlp2"])
def test_predictions_are_in_physical_units(model, head):
    flux = spectra(3)
    features = model.mean_token(flux) if head == "mlp1" else model.embed(flux)
    stats = {"feature_mean": 0.0, "feature_std": 1.0, **STATS[head]}
    x = (features - stats["feature_mean"]) / stats["feature_std"]
    variables = {name: tree[head] for name, tree in model.variables.items()}
    labels = jax.jit(LabelHead(TINY.head).apply)(variables, x)
    labels = labels * np.array(stats["label_std"]) + np.array(stats["label_mean"])
    predicted = model.predict(flux, head)
    assert list(predicted) == ["teff", "fe_h"]
    np.testing.assert_allclose(np.stack(list(predicted.values()), axis=1), labels, rtol=1e-4)  # float32


def test_a_model_has_its_own_parameters(model):
    """Also where NumPy's memory is aligned so that a device array could share it."""
    buffer = np.zeros(2**12 + 16, np.float32)
    mine = buffer[-buffer.ctypes.data % 64 // 4 :][: 2**12]
    made = Foundation(config=TINY, variables={"params": {"x": mine}})
    mine[0] = 1.0
    assert made.params["x"][0] == 0


def test_adapters_are_merged(model):
    flux = spectra(2)
    base = model.predict(flux)["fe_h"]
    fresh = lora.init_adapters(jax.random.key(0), model.params, TINY.loras)
    np.testing.assert_array_equal(model.predict(flux, adapters=fresh)["fe_h"], base)
    trained = jax.tree.map(lambda leaf: leaf + 0.1, fresh)
    adapted = model.predict(flux, adapters=trained)["fe_h"]
    assert np.abs(adapted - base).max() > 1e-3
    np.testing.assert_array_equal(model.adapted(trained).predict(flux)["fe_h"], adapted)
    np.testing.assert_array_equal(model.predict(flux)["fe_h"], base)  # the model itself is as it was


def test_an_adapter_may_replace_leaves_but_not_add_others(model):
    bias = {"mlp2": {"dense_2": {"bias": np.full(2, 7.0, np.float32)}}}
    shifted = model.predict(spectra(2), adapters=bias)["teff"] - model.predict(spectra(2))["teff"]
    before = model.params["mlp2"]["dense_2"]["bias"][0]
    np.testing.assert_allclose(shifted, 600 * (7 - before), rtol=1e-4)  # float32 of differences of 1e4
    for wrong in ({"mlp2": {"dense_9": {"bias": np.zeros(2)}}}, {"mlp2": {"dense_2": {"bias": np.zeros(3)}}}):
        with pytest.raises(ModelError, match="does not fit the model"):
            model.adapted(wrong)


def residual_head(config, head, output=0.1):
    """Leaves of a residual head as an adaptation returns them for one seed, with some output."""
    width = config.specformer.dim if head == "mlp1" else config.projection.dim
    made = init_residual(jax.random.key(1), config.head, width)
    return {head: jax.tree.map(lambda leaf: leaf + output, made)}


@pytest.mark.parametrize("members", [1, 3])
@pytest.mark.parametrize("head", ["mlp1", "mlp2"])
def test_an_adapter_may_add_a_residual_head(members, head, tmp_path):
    config = dataclasses.replace(TINY, head=dataclasses.replace(TINY.head, members=members))
    model = Foundation(config=config, variables=random_system(config))
    base = model.predict(spectra(2), head)["fe_h"]
    silent = jax.tree.map(jnp.zeros_like, residual_head(config, head))
    np.testing.assert_array_equal(model.predict(spectra(2), head, adapters=silent)["fe_h"], base)
    leaves = residual_head(config, head)
    adapted = model.adapted(leaves)
    found = adapted.predict(spectra(2), head)["fe_h"]
    seeds = jax.tree.map(lambda leaf: leaf[None], leaves)
    np.testing.assert_allclose(found, predict_label(model, (head,), seeds, spectra(2), "fe_h")[0], rtol=1e-4)
    assert np.abs(found - base).max() > 1e-3
    adapted.save(tmp_path / "model")
    np.testing.assert_array_equal(load(tmp_path / "model").predict(spectra(2), head)["fe_h"], found)


def test_a_residual_head_that_does_not_fit_is_refused(model):
    leaves = residual_head(TINY, "mlp1")["mlp1"]
    wide = jax.tree.map(lambda leaf: np.zeros((*leaf.shape[:-1], 5)), leaves)
    half = {"residual_0": leaves["residual_0"]}
    deep = {**leaves, "residual_2": leaves["residual_1"]}
    for wrong in (wide, half, deep):
        with pytest.raises(ModelError, match="does not fit the model"):
            model.adapted({"mlp1": wrong})


class TestMasks:
    def test_masked_pixels_may_hold_anything(self, model):
        flux, mask = spectra(3), np.random.default_rng(2).random((3, LAMOST)) < 0.2
        expected = model.embed(on_grid(flux, mask))
        other = dataclasses.replace(on_grid(flux, mask), flux=np.where(mask, 1e30, flux))
        np.testing.assert_array_equal(model.embed(other), expected)
        without_ivar = on_grid(flux, ivar=np.where(mask, 0.0, 4.0))
        np.testing.assert_array_equal(model.embed(without_ivar), expected)
        assert np.abs(expected - model.embed(flux)).max() > 1e-3

    def test_spectra_without_masks_are_as_bare_flux(self, model):
        np.testing.assert_array_equal(model.embed(on_grid(spectra(3))), model.embed(spectra(3)))
        flux = spectra(3, "gaia_xp")
        on_xp = on_grid(flux, survey="gaia_xp")
        np.testing.assert_array_equal(model.embed(on_xp), model.embed(flux, "gaia_xp"))
        np.testing.assert_array_equal(
            model.translate(on_xp, target="lamost"),
            model.translate(flux, source="gaia_xp", target="lamost"),
        )

    def test_inverse_variances_reach_the_fill(self, model):
        class Fill:
            def apply(self, flux, ivar, mask):
                np.testing.assert_array_equal(ivar, given)
                return flux

        given = np.where(np.random.default_rng(2).random((3, LAMOST)) < 0.2, 0.0, 4.0)
        dataclasses.replace(model, fill=Fill()).embed(on_grid(spectra(3), ivar=given))

    def test_a_row_without_a_valid_pixel_is_finite(self, model):
        flux = spectra(2)
        mask = np.zeros(flux.shape, bool)
        mask[1] = True
        out = model.embed(on_grid(flux, mask))
        assert np.isfinite(out).all()
        np.testing.assert_allclose(out[:1], model.embed(flux[:1]), **CLOSE)

    def test_a_constant_spectrum_is_finite_and_silent(self, model):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert np.isfinite(model.embed(np.ones((1, LAMOST)))).all()

    def test_the_fill_basis_replaces_masked_lamost_pixels(self, model):
        class Fill:
            def apply(self, flux, ivar, mask):
                assert ivar is None
                return np.where(mask, truth, flux)

        truth, mask = spectra(3), np.random.default_rng(2).random((3, LAMOST)) < 0.2
        filled = dataclasses.replace(model, fill=Fill())
        np.testing.assert_array_equal(filled.embed(on_grid(truth, mask)), model.embed(truth))


@pytest.mark.parametrize(
    ("flux", "message"),
    [
        (np.ones((2, 5)), r"flux must have the shape \(n, 41\), not \(2, 5\)"),
        (np.ones(LAMOST), r"not \(41,\)"),
        (np.ones((0, LAMOST)), r"not \(0, 41\)"),
        (np.full((2, LAMOST), np.nan), "NaN or infinity in 2 of 2 spectra, first in row 0"),
        (np.full((1, LAMOST), np.inf), "NaN or infinity"),
        (np.full((1, LAMOST), 1e20), "must be normalised"),
        (np.full((1, LAMOST), 1e-17), "must be normalised"),
        ("flux", "array of real numbers"),
        ([[1.0], [1.0, 2.0]], "array of real numbers"),
        (np.ones((1, LAMOST), complex), "array of real numbers"),
    ],
)
def test_flux_that_cannot_be_used(model, flux, message):
    with pytest.raises(DataError, match=message) as caught:
        model.embed(flux)
    assert "\n" not in str(caught.value)


def test_requests_that_cannot_be_met(model, bare):
    flux = spectra(1)
    with pytest.raises(DataError, match="unknown survey 'desi'"):
        model.embed(flux, "desi")
    with pytest.raises(DataError, match="on the grid of 'gaia_xp', not of 'lamost'"):
        model.mean_token(on_grid(spectra(1, "gaia_xp"), survey="gaia_xp"))
    with pytest.raises(DataError, match="must be put on the model grid first"):
        model.embed(dataclasses.replace(on_grid(flux), prepared=None))
    with pytest.raises(DataError, match="cannot translate 'lamost' to 'lamost'"):
        model.translate(flux, source="lamost", target="lamost")
    with pytest.raises(ModelError, match="no decoders"):
        bare.translate(flux, source="lamost", target="gaia_xp")
    with pytest.raises(ModelError, match="no head 'mlp3'"):
        model.predict(flux, "mlp3")
    with pytest.raises(ModelError, match="no head 'mlp1'"):
        bare.predict(flux, "mlp1")
    with pytest.raises(ModelError, match="bare encoder"):
        bare.predict(flux, "mlp2")
    only_xp = Foundation(config=TINY, variables={"params": {"gaia_xp": bare.params["gaia_xp"]}})
    with pytest.raises(ModelError, match="no encoder for 'lamost'"):
        only_xp.embed(flux)


def test_a_bare_gaia_xp_transformer():
    config = dataclasses.replace(
        TINY.specformer,
        num_pixels=XP,
        window=1,
        stride=1,
        drop_last=False,
        statistics=("mean", "std"),
        max_len=30,
    )
    shapes = jax.eval_shape(SpecFormer(config).init, jax.random.key(0), jnp.zeros((1, XP + 1, 3)))
    params = {"gaia_xp": {"backbone": random_like(shapes)["params"]}}
    model = Foundation(config=dataclasses.replace(TINY, xp_transformer=config), variables={"params": params})
    flux = spectra(2, "gaia_xp")
    assert model.embed(flux, "gaia_xp").shape == (2, config.dim)
    assert model.reconstruct(flux, "gaia_xp").shape == flux.shape
    assert model.reconstruct(flux, "gaia_xp", raw=True).shape == (2, XP + 1, 3)


class TestFolders:
    def test_round_trip(self, model, tmp_path):
        digest = model.save(tmp_path / "model")
        loaded = load(tmp_path / "model")
        assert loaded.digest == digest
        assert loaded.config == TINY
        for name, labels in model.predict(spectra(2), "mlp1").items():
            np.testing.assert_array_equal(loaded.predict(spectra(2), "mlp1")[name], labels)

    def test_round_trip_of_a_bare_encoder_in_half_precision(self, bare, tmp_path):
        bare.save(tmp_path / "model", half=True)
        # float16 keeps 11 bits of each weight: 5e-4 of it.
        np.testing.assert_allclose(
            load(tmp_path / "model").embed(spectra(2)), bare.embed(spectra(2)), atol=0.02
        )

    def test_round_trip_of_the_fill_basis(self, model, tmp_path):
        from specjax.preprocess.fill import PrincipalFill

        flux = spectra(30)
        fill = PrincipalFill.fit(flux, np.zeros(flux.shape, bool), 3)
        filled = dataclasses.replace(model, fill=fill)
        filled.save(tmp_path / "model")
        mask = np.random.default_rng(2).random((2, LAMOST)) < 0.2
        again = load(tmp_path / "model")
        given = on_grid(flux[:2], mask)
        np.testing.assert_array_equal(again.embed(given), filled.embed(given))

    def test_mini_is_the_model_that_ships(self, monkeypatch, model, tmp_path):
        (tmp_path / "data").mkdir()
        model.save(tmp_path / "data" / "mini")
        monkeypatch.setattr(model_module, "__file__", str(tmp_path / "foundation" / "model.py"))
        assert load("mini").config == TINY

    def test_a_folder_that_holds_no_model(self, tmp_path):
        with pytest.raises(ModelError, match="no model folder"):
            load(tmp_path / "nowhere")


@pytest.mark.parametrize(("fast", "dtype"), [(True, "bfloat16"), (False, "float32")])
def test_by_default_a_model_computes_in_the_type_that_the_device_is_fast_in(monkeypatch, fast, dtype):
    monkeypatch.setattr(devices, "has_bfloat16_units", lambda: fast)
    assert load("mini").dtype == dtype
    assert load("mini", dtype="float32").dtype == "float32"
    with pytest.raises(ConfigError, match="dtype must be float32 or bfloat16, not 'float16'"):
        load("mini", dtype="float16")
