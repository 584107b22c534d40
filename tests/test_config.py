import dataclasses
import json

import pytest

from specjax import config as configs
from specjax.errors import ConfigError


@pytest.mark.parametrize("name", list(configs.PRESETS))
def test_json_round_trip(name):
    config = configs.get_preset(name)
    assert configs.from_dict(json.loads(json.dumps(configs.to_dict(config)))) == config


def test_json_round_trip_of_optional_fields():
    config = dataclasses.replace(
        configs.get_preset("mini"),
        decoder=None,
        specformer=configs.SpecFormerConfig(logit_scale=0.25, flux_scale=0.1),
    )
    assert configs.from_dict(json.loads(json.dumps(configs.to_dict(config)))) == config


def test_configurations_are_hashable():
    assert hash(configs.get_preset("paper")) != hash(configs.get_preset("mini"))


def test_the_error_for_an_unknown_preset_names_the_known_ones():
    with pytest.raises(ConfigError, match="paper, base, split, xp-transformer, mini"):
        configs.get_preset("huge")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"depth": 3}, "unknown keys in config: depth"),
        ({"head": {"width": 1}}, r"unknown keys in config\.head: width"),
        ({"head": 3}, r"config\.head must be a mapping"),
        ({"lora1": {"rank": 4}}, r"config\.lora1: .*alpha"),
        ({"specformer": {"dim": "wide"}}, r"config\.specformer\.dim must be int"),
        ({"specformer": {"dim": True}}, r"config\.specformer\.dim must be int"),
        ({"head": {"hidden_dims": 5}}, r"config\.head\.hidden_dims must be a list"),
        ({"head": {"hidden_dims": [8, True]}}, r"config\.head\.hidden_dims must be int, not True"),
        ({"specformer": {"logit_scale": True}}, r"config\.specformer\.logit_scale must be float"),
        ({"xp_transformer": {"width": 1}}, r"unknown keys in config\.xp_transformer: width"),
        ({"labels": "fe_h"}, r"config\.labels must be a list, not 'fe_h'"),
        ({"labels": ["teff", "logg"]}, "2 label names for a head with 1"),
        ({"specformer": {"num_heads": 5}}, "not divisible by 5 heads"),
        ({"specformer": {"max_len": 10}}, "146 tokens exceed max_len 10"),
        ({"specformer": {"drop_last": False}}, "the windows need 1470 pixels of 1462"),
        ({"specformer": {"statistics": ["median"]}}, "median"),
        ({"specformer": {"flux_scale": 0.0}}, "flux_scale must be positive"),
        ({"projection": {"shared_dim": 6}}, "shared_dim 6 is not divisible by 4 heads"),
        ({"lora1": {"rank": 0, "alpha": 1}}, "rank must be at least 1"),
        ({"head": {"members": 0}}, "at least one member"),
        ([], "config must be a mapping"),
    ],
)
def test_invalid_configurations_are_reported(data, message):
    with pytest.raises(ConfigError, match=message):
        configs.from_dict(data)


def test_published_tokenisation_sizes():
    lamost = configs.SpecFormerConfig()
    assert (lamost.num_tokens, lamost.token_dim) == (146, 21)
    gaia_xp = configs.XP_TRANSFORMER
    assert (gaia_xp.num_tokens, gaia_xp.token_dim) == (344, 3)


def test_attention_is_scaled_twice_by_default():
    assert configs.SpecFormerConfig().attention_scale == 1 / 128
    assert configs.SpecFormerConfig(logit_scale=128**-0.5).attention_scale == 128**-0.5
