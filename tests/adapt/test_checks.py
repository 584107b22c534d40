"""What is wrong with a study is said before anything trains."""

import dataclasses

import pytest

from specjax.adapt import stage, survey
from specjax.adapt.adaptation import Adaptation
from specjax.adapt.configuration import Configuration
from specjax.adapt.objectives import Objective
from specjax.adapt.splits import draw_splits
from specjax.adapt.study import run_study
from specjax.errors import ConfigError, ModelError
from tests import synthetic

pytestmark = pytest.mark.usefixtures("quick_compilation")

CONFIG = synthetic.ADAPT
SEQUENTIAL = dataclasses.replace(CONFIG, objective="sequential")


@pytest.fixture
def model(tmp_path, monkeypatch):
    """A model with a digest, in a place where training is a failure."""

    def train(*args, **options):
        raise AssertionError("it trained")

    monkeypatch.setattr(stage, "fit", train)
    return dataclasses.replace(synthetic.foundation(), digest="0" * 64)


def study(model, out, config, *names, say=lambda text: None):
    """Run a study that ends, if its settings are accepted, where training begins."""
    configurations = [Configuration.parse(name) for name in names]
    run_study(model, [synthetic.target()], config, out, configurations=configurations, say=say)


def refused(error, message, model, tmp_path, config, *names):
    with pytest.raises(error, match=message) as caught:
        study(model, tmp_path / "run", config, *names)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_no_configuration_at_all(model, tmp_path):
    refused(ConfigError, "name at least one configuration", model, tmp_path, CONFIG)
    nothing = tmp_path / "nothing"
    with pytest.raises(ConfigError, match="name at least one configuration"):
        survey.adapt_survey(model=nothing, spectra=nothing, labels=nothing, out=nothing, configurations=())


def test_whole_towers_in_a_sequence_of_stages(model, tmp_path):
    refused(ConfigError, "full-mlp1: only low-rank", model, tmp_path, SEQUENTIAL, "lora2", "full-mlp1")
    nothing = tmp_path / "nothing"
    with pytest.raises(ConfigError, match="full-mlp1: only low-rank factors"):
        survey.adapt_survey(
            model=nothing, spectra=nothing, labels=nothing, out=nothing,
            configurations=("full-mlp1",), config=SEQUENTIAL,
        )  # fmt: skip


@pytest.mark.parametrize("names", [("lora4",), ("zero-shot-mlp2",), ("lora2", "lora1+lora2")])
def test_a_rule_of_ranks_that_no_layer_matches(model, tmp_path, names):
    config = dataclasses.replace(CONFIG, ranks=(("q_proj", 2), ("qproj", 2)))
    refused(
        ConfigError,
        "'qproj' in ranks .--ranks. matches no layer.*blocks_0/attention",
        model,
        tmp_path,
        config,
        *names,
    )
    splits = draw_splits(40, seeds=3, train=20, validate=4)
    with pytest.raises(ConfigError, match="'qproj' in ranks"):
        Adaptation(model, synthetic.target(), splits, config)


def test_a_rule_of_ranks_may_serve_another_configuration(model, tmp_path):
    config = dataclasses.replace(CONFIG, ranks=(("q_proj", 2),))
    with pytest.raises(AssertionError, match="it trained"):
        study(model, tmp_path / "run", config, "lora4")


def test_ranks_that_leave_a_group_without_layers(model, tmp_path):
    config = dataclasses.replace(CONFIG, ranks=(("mlp2", 0),))
    message = "nothing in this model for lora4 to adapt.*--ranks"
    refused(ModelError, message, model, tmp_path, config, "lora2", "lora4")


@pytest.mark.parametrize("names", [("residual-mlp1",), ("scratch-mlp2", "zero-shot-mlp1"), ("full-mlp1",)])
def test_fusing_what_has_no_low_rank_factors(model, tmp_path, names):
    config = dataclasses.replace(CONFIG, fuse=True)
    message = f"none of {', '.join(names)} can be fused"
    refused(ConfigError, message, model, tmp_path, config, *names)
    nothing = tmp_path / "nothing"
    with pytest.raises(ConfigError, match=message):
        survey.adapt_survey(
            model=nothing, spectra=nothing, labels=nothing, out=nothing, configurations=names, config=config
        )


def test_other_configurations_beside_those_that_are_fused(model, tmp_path):
    said = []
    config = dataclasses.replace(CONFIG, fuse=True)
    with pytest.raises(AssertionError, match="it trained"):
        study(model, tmp_path / "run", config, "residual-mlp1", "lora2", say=said.append)
    assert [line for line in said if "fuse" in line] == [
        "residual-mlp1 is not fused: only low-rank factors (lora1 to lora4) can be averaged"
    ]


def test_an_objective_none_of_whose_terms_reaches_a_configuration(model, tmp_path):
    masked = dataclasses.replace(CONFIG.joint[0], objective=Objective(label=0.0, masked=1.0))
    config = dataclasses.replace(CONFIG, joint=(masked,), head=(masked,))
    message = r"lora4: no term of the objective \(masked\) trains lora4"
    refused(ConfigError, message, model, tmp_path, config, "lora1", "lora4")


def test_a_model_without_the_part_that_the_last_configuration_needs(model, tmp_path):
    params = {name: tree for name, tree in model.params.items() if name != "mlp1"}
    bare = dataclasses.replace(model, variables={**model.variables, "params": params})
    refused(ModelError, "no head 'mlp1'", bare, tmp_path, CONFIG, "lora4", "lora2")
