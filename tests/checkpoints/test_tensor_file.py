import errno
import io

import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from specjax import checkpoints
from specjax.checkpoints import tensor_file
from specjax.errors import ModelError
from tests.checkpoints.arrays import CONFIG, assert_same, some_arrays


def test_round_trips_of_all_types_and_memory_layouts(tmp_path):
    """Written by specjax, read by the safetensors library."""
    values = np.arange(24).reshape(2, 3, 4)
    kinds = "float64 float32 float16 bfloat16 int64 int32 int16 int8 uint64 uint32 uint16 uint8 bool".split()
    arrays = {
        "kinds": {kind: jnp.dtype(kind).type(1) * values.astype(jnp.dtype(kind)) for kind in kinds},
        "views": {
            "transposed": values.T,
            "strided": values[:, ::2],
            "broadcast": np.broadcast_to(1.5, (3, 2)),
        },
        "small": {"scalar": np.float32(2), "empty": np.zeros((0, 3)), "one": np.int8([7])},
    }
    checkpoints.save_model(tmp_path / "m", config={}, arrays=arrays)
    assert_same(checkpoints.load_model(tmp_path / "m").arrays, arrays)
    with pytest.raises(ModelError, match=r"c has the type complex64"):
        checkpoints.save_model(tmp_path / "c", config={}, arrays={"c": np.zeros(2, np.complex64)})


def test_half_storage_rounds_only_matching_tensors(tmp_path):
    arrays = some_arrays()
    checkpoints.save_model(tmp_path / "half", config=CONFIG, arrays=arrays, half=["params/lamost/*"])
    stored = checkpoints.load_model(tmp_path / "half").arrays
    kernel = np.asarray(arrays["params"]["lamost"]["kernel"])
    assert stored["params"]["lamost"]["kernel"].dtype == np.float32
    np.testing.assert_array_equal(stored["params"]["lamost"]["kernel"], kernel.astype(np.float16))
    np.testing.assert_array_equal(stored["fill"]["mean"], arrays["fill"]["mean"])
    on_disk = load_file(tmp_path / "half" / "weights.safetensors")
    assert on_disk["params/lamost/kernel"].dtype == np.float16
    assert on_disk["params/scale"].dtype == np.float32


def test_half_storage_refuses_values_outside_float16(tmp_path):
    with pytest.raises(ModelError, match="params/w"):
        checkpoints.save_model(
            tmp_path / "m", config={}, arrays={"params": {"w": np.float32([7e4])}}, half=["*"]
        )
    assert not any(tmp_path.iterdir())


def test_a_flipped_bit_names_its_tensor(saved):
    weights = saved / "weights.safetensors"
    data = bytearray(weights.read_bytes())
    kernel = load_file(weights)["params/lamost/kernel"].tobytes()
    data[data.index(kernel) + 5] ^= 1
    weights.write_bytes(data)
    with pytest.raises(ModelError, match="tensor params/lamost/kernel"):
        checkpoints.load_model(saved)


@pytest.mark.parametrize("change", ["missing", "extra", "shape", "dtype"])
def test_tensors_that_differ_from_the_manifest_are_named(saved, change):
    tensors = load_file(saved / "weights.safetensors")
    name = "params/lamost/bias"
    if change == "missing":
        del tensors[name]
    else:
        name = "params/more" if change == "extra" else name
        tensors[name] = np.zeros(4, np.float32) if change != "dtype" else np.zeros(3, np.float64)
    save_file(tensors, saved / "weights.safetensors")
    with pytest.raises(ModelError, match=name):
        checkpoints.load_model(saved)


class FullDisk(io.RawIOBase):
    """A file that accepts only the first write."""

    def __init__(self):
        self.writes = 0

    def write(self, data):
        self.writes += 1
        if self.writes > 1:
            raise OSError(errno.ENOSPC, "No space left on device")
        return len(data)


def test_a_full_disk_is_reported_from_the_writing_thread(saved, monkeypatch):
    opened = tensor_file._HashedFile.__init__

    def on_a_full_disk(file, path):
        opened(file, path)
        file._file.close()
        file._file = FullDisk()

    monkeypatch.setattr(tensor_file._HashedFile, "__init__", on_a_full_disk)
    with pytest.raises(OSError, match="No space left"):
        checkpoints.save_model(saved, config={}, arrays=some_arrays(1))
    assert checkpoints.load_model(saved).config == CONFIG
