import jax
import pytest
from hypothesis import given
from hypothesis import strategies as st

from specjax import checkpoints

names = st.text("abcdefgh_0123", min_size=1, max_size=4)
trees = st.recursive(
    st.just(None), lambda inner: st.dictionaries(names, inner, max_size=3), max_leaves=8
).filter(lambda tree: isinstance(tree, dict))


@given(trees)
def test_unflatten_inverts_flatten(tree):
    filled = jax.tree.map(lambda _: 1, tree, is_leaf=lambda x: x is None)
    assert checkpoints.unflatten(checkpoints.flatten(filled)) == filled


@pytest.mark.parametrize("key", ["a/b", "", 3])
def test_invalid_keys_are_refused(key):
    with pytest.raises(ValueError, match="key"):
        list(checkpoints.flatten({"params": {key: 1}}))
