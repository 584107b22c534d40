import pytest

from specjax.adapt.configuration import PAPER, Configuration
from specjax.errors import ConfigError

TOWER = ("lamost/backbone", "lamost/projection")


@pytest.mark.parametrize(
    ("name", "groups", "heads"),
    [
        ("zero-shot-mlp1", (), ("mlp1",)),
        ("zero-shot-mlp2", (), ("mlp2",)),
        ("lora1", ("lora1",), ("mlp1",)),
        ("lora2", ("lora2",), ("mlp1",)),
        ("lora3", ("lora3",), ("mlp2",)),
        ("lora4", ("lora4",), ("mlp2",)),
        ("lora1+lora2", ("lora1", "lora2"), ("mlp1",)),
        ("lora1+lora3", ("lora1", "lora3"), ("mlp2",)),
        ("lora1+lora4", ("lora1", "lora4"), ("mlp2",)),
        ("lora2+lora3", ("lora2", "lora3"), ("mlp1", "mlp2")),
        ("lora2+lora4", ("lora2", "lora4"), ("mlp1", "mlp2")),
        ("lora3+lora4", ("lora3", "lora4"), ("mlp2",)),
        ("lora4+lora3+lora1", ("lora1", "lora3", "lora4"), ("mlp2",)),
        ("lora1+lora2+lora3+lora4", ("lora1", "lora2", "lora3", "lora4"), ("mlp1", "mlp2")),
    ],
)
def test_groups_and_heads(name, groups, heads):
    configuration = Configuration.parse(name)
    assert (configuration.name, configuration.groups, configuration.heads) == (name, groups, heads)
    assert configuration.zero_shot.name == f"zero-shot-{heads[-1]}"
    assert configuration.is_adapted == bool(groups)
    assert (*configuration.tower_groups, *configuration.head_groups) == tuple(
        sorted(groups, key=lambda group: group in ("lora2", "lora4"))
    )
    assert configuration.tower_groups == tuple(group for group in groups if group in ("lora1", "lora3"))


@pytest.mark.parametrize(
    ("name", "groups", "tower", "from_scratch"),
    [
        ("residual-mlp1", ("residual/mlp1",), (), False),
        ("scratch-mlp2", ("mlp2",), (), True),
        ("full-mlp1", ("lamost/backbone", "mlp1"), ("lamost/backbone",), False),
        (
            "full-mlp2",
            ("lamost/backbone", "lamost/projection", "mlp2"),
            ("lamost/backbone", "lamost/projection"),
            False,
        ),
    ],
)
def test_what_is_trained_without_low_rank_factors(name, groups, tower, from_scratch):
    configuration = Configuration.parse(name)
    assert (configuration.groups, configuration.tower_groups) == (groups, tower)
    assert configuration.heads == (name[-4:],)
    assert configuration.from_scratch == from_scratch
    assert not configuration.lora_groups


def test_the_group_of_a_head_is_none_unless_it_is_adapted():
    both = Configuration.parse("lora2+lora4")
    assert [both.head_group(head) for head in ("mlp1", "mlp2")] == ["lora2", "lora4"]
    assert Configuration.parse("lora1+lora4").head_group("mlp1") is None
    assert Configuration.parse("zero-shot-mlp2").head_group("mlp2") is None


def test_the_rows_of_the_paper_are_configurations_and_hashable():
    assert len({Configuration.parse(name) for name in (*PAPER, *PAPER)}) == 6


@pytest.mark.parametrize(
    "name",
    [
        "",
        "lora5",
        "lora1+",
        "+lora1",
        "lora1+lora1",
        "lora1 + lora2",
        "LoRA1",
        "zero-shot",
        "mlp1",
        "full",
        "scratch-mlp3",
        "full-lora1",
    ],
)
def test_other_names_are_refused(name):
    with pytest.raises(ConfigError, match="no configuration") as caught:
        Configuration.parse(name)
    assert "\n" not in str(caught.value)
