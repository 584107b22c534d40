import dataclasses
import signal
import struct

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from matplotlib.image import imread
from tensorboardX.proto import event_pb2

from specjax.errors import ConfigError, ModelError, TrainingError
from specjax.interrupt import Terminated
from specjax.pretrain import monitor
from specjax.pretrain.config import StageConfig
from specjax.pretrain.loop import run_stage
from specjax.pretrain.programs import LoopOptions, chunk_program
from specjax.train.sharding import training_mesh

pytestmark = pytest.mark.usefixtures("quick_compilation")

CONFIG = StageConfig(steps=12, batch=4, learning_rate=0.1, weight_decay=0.1, chunk=3)
KEY = jax.random.key(2)


def loss(params, stats, data, key):
    """Least squares on a random batch; the statistics count the steps."""
    rows = jax.random.randint(key, (CONFIG.batch,), 0, len(data["x"]))
    error = data["x"][rows] @ params["w"] - data["y"][rows]
    return (error**2).mean(), ({"count": stats["count"] + 1}, {"largest": jnp.abs(error).max()})


def run(config=CONFIG, say=lambda text: None, **options):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(30, 5))
    data = {"x": jnp.asarray(x, jnp.float32), "y": jnp.asarray(x @ np.arange(5), jnp.float32)}
    start = {"w": jnp.zeros(5)}
    return run_stage(
        "toy", loss, config, params=start, batch_stats={"count": jnp.zeros(())}, data=data, key=KEY, say=say,
        **options,
    )  # fmt: skip


@pytest.fixture(scope="module")
def whole():
    return run()


def stop_after(step):
    """Interrupt the run as a user would, after the report of a chunk."""

    def say(text):
        if f" {step}/" in text:
            raise KeyboardInterrupt

    return say


def test_runs_all_steps_and_learns(whole):
    params, stats = whole
    assert stats["count"] == CONFIG.steps
    params = run(dataclasses.replace(CONFIG, steps=300, chunk=100, weight_decay=0.0))[0]
    np.testing.assert_allclose(params["w"], np.arange(5), atol=0.05)  # noiseless, at a rate decayed to zero


@pytest.mark.parametrize("chunk", [1, 5, 12, 100])
def test_the_result_does_not_depend_on_the_chunk_size(whole, chunk):
    """Random numbers and schedule depend on the step, not on the chunk."""
    # Scans of different lengths are different programs: float32 rounding.
    chex.assert_trees_all_close(run(dataclasses.replace(CONFIG, chunk=chunk)), whole, rtol=1e-5)


@pytest.mark.parametrize("step", [3, 9])
def test_a_resumed_run_equals_an_uninterrupted_one(whole, tmp_path, step):
    with pytest.raises(KeyboardInterrupt):
        run(folder=tmp_path, say=stop_after(step))
    said = []
    resumed = run(folder=tmp_path, say=said.append)
    assert said[0] == f"toy: resuming after step {step}"
    assert len(said) == 1 + (CONFIG.steps - step) // CONFIG.chunk
    chex.assert_trees_all_equal(resumed, whole)


def test_a_finished_stage_is_not_run_again(whole, tmp_path):
    run(folder=tmp_path)
    said = []
    chex.assert_trees_all_equal(run(folder=tmp_path, say=said.append), whole)
    assert said == ["toy: resuming after step 12"]


def test_a_state_of_another_model_is_refused(tmp_path):
    run(folder=tmp_path)
    data = {"x": jnp.zeros((4, 3)), "y": jnp.zeros(4)}
    with pytest.raises(ModelError, match="does not fit") as caught:
        run_stage(
            "toy", loss, CONFIG, params={"w": jnp.zeros(3), "b": jnp.zeros(1)}, data=data, key=KEY,
            batch_stats={"count": jnp.zeros(())}, folder=tmp_path, say=lambda text: None,
        )  # fmt: skip
    assert "\n" not in str(caught.value)


def test_reports_and_validates_each_chunk():
    said, seen = [], []

    def validate(params, stats):
        seen.append(int(stats["count"]))
        return {"held-out": float(params["w"].sum())}

    run(dataclasses.replace(CONFIG, steps=7), said.append, validate=validate)
    assert seen == [3, 6, 7]
    assert [line.split("  ")[0] for line in said] == ["toy 3/7", "toy 6/7", "toy 7/7"]
    for word in ("loss", "largest", "held-out"):
        assert all(word in line for line in said)


def test_the_state_is_donated():
    """The new state reuses the memory of all arguments but the data and the step numbers."""
    optimizer = CONFIG.optimizer()
    params = {"w": jnp.zeros(5)}
    state = {"params": params, "batch_stats": {"count": jnp.zeros(())}, "optimizer": optimizer.init(params)}
    data = {"x": jnp.zeros((30, 5)), "y": jnp.zeros(30)}
    program = chunk_program(loss, optimizer, KEY, training_mesh(CONFIG.batch))
    memory = program.lower(state, data, np.arange(3)).compile().memory_analysis()
    assert memory.alias_size_in_bytes == sum(leaf.nbytes for leaf in jax.tree.leaves(state))


def test_the_starting_state_is_not_donated():
    params, stats = {"w": jnp.ones(5)}, {"count": jnp.zeros(())}
    data = {"x": jnp.ones((30, 5)), "y": jnp.ones(30)}
    run_stage(
        "toy", loss, CONFIG, params=params, batch_stats=stats, data=data, key=KEY, say=lambda text: None
    )
    np.testing.assert_array_equal(params["w"], 1)  # a donated buffer cannot be read
    np.testing.assert_array_equal(stats["count"], 0)


def test_the_schedule_warms_up_and_decays_to_zero():
    config = StageConfig(steps=40, batch=1, learning_rate=0.5, weight_decay=0.0, warmup=0.25)
    optimizer = config.optimizer()
    params = jnp.zeros(1)

    def step(state, _):
        updates, state = optimizer.update(jnp.full(1, 0.1), state, params)
        return state, -updates[0]

    _, rates = jax.lax.scan(step, optimizer.init(params), length=40)
    # Under constant gradients the step of Adam is the learning rate.
    expected = np.concatenate([0.5 * np.arange(10) / 10, 0.25 * (1 + np.cos(np.pi * np.arange(30) / 30))])
    np.testing.assert_allclose(rates, expected, rtol=1e-5, atol=1e-9)  # float32, and Adam's eps


class Batches:
    """A feed of ten different batches, whose rows are numbered."""

    def __init__(self, poison=None):
        rng = np.random.default_rng(1)
        self.x = rng.normal(size=(10, CONFIG.batch, 5)).astype(np.float32)
        if poison is not None:
            self.x[poison] = np.nan
        self.next = 0

    def __next__(self):
        x = self.x[self.next % 10]
        rows = CONFIG.batch * self.next + np.arange(CONFIG.batch)
        self.next += 1
        return {"x": x, "y": x @ np.arange(5, dtype=np.float32), "row": rows}

    def state(self):
        return {"next": self.next}

    def restore(self, state):
        self.next = state["next"]

    def ids(self, rows):
        return [f"star {row}" for row in rows]


def fed_loss(params, stats, data, key):
    """Least squares of a batch with some random noise; the statistics count the steps."""
    batch = data["batch"]
    error = batch["x"] @ params["w"] - batch["y"] + 0.01 * jax.random.normal(key, batch["y"].shape)
    return (error**2).mean(), ({"count": stats["count"] + 1}, {"largest": jnp.abs(error).max()})


def fed(feed=None, config=CONFIG, say=lambda text: None, loss=fed_loss, **options):
    return run_stage(
        "toy", loss, config, params={"w": jnp.zeros(5)}, batch_stats={"count": jnp.zeros(())}, data={},
        key=KEY, feed=feed or Batches(), say=say, **options,
    )  # fmt: skip


@pytest.fixture(scope="module")
def whole_fed():
    return fed()


def test_a_stage_learns_from_a_feed(whole_fed):
    params, stats = fed(config=dataclasses.replace(CONFIG, steps=300, chunk=100, weight_decay=0.0))
    assert stats["count"] == 300
    np.testing.assert_allclose(params["w"], np.arange(5), atol=0.05)  # the noise of the targets is 0.01
    chex.assert_trees_all_equal(fed(config=dataclasses.replace(CONFIG, chunk=5)), whole_fed)


def test_the_share_of_the_peak_follows_from_the_operations_of_a_step(tmp_path):
    fed(options=LoopOptions(log=tmp_path, peak=1e12))
    for line in monitor.read(tmp_path):
        # A product of (4, 5) with (5,) forward and backward takes 80, and there is little else.
        operations = line["tflops_per_s"] * 1e12 / line["steps_per_s"]
        assert 80 <= operations <= 1000
        np.testing.assert_allclose(line["share_of_peak"], line["tflops_per_s"], rtol=1e-5)  # six digits


def test_scores_are_written_for_tensorboard_too(tmp_path):
    options = LoopOptions(log=tmp_path / "log", tensorboard=True)
    with pytest.raises(KeyboardInterrupt):
        fed(folder=tmp_path / "states", options=options, say=stop_after(6))
    fed(folder=tmp_path / "states", options=options)
    written = {step: loss for step, loss in board_scores(tmp_path / "log" / "tensorboard" / "toy", "loss")}
    assert written == pytest.approx({line["step"]: line["loss"] for line in monitor.read(tmp_path / "log")})
    monitor.keep(tmp_path / "log", tmp_path / "kept")
    assert list((tmp_path / "kept" / "tensorboard" / "toy").iterdir())


def board_scores(folder, tag):
    """Yield (step, value) of a score in event files, whose records are a length, two CRCs and a message."""
    for path in sorted(folder.iterdir()):
        data, place = path.read_bytes(), 0
        while place < len(data):
            (length,) = struct.unpack_from("<Q", data, place)
            event = event_pb2.Event.FromString(data[place + 12 : place + 12 + length])
            place += 16 + length
            for value in event.summary.value:
                if value.tag == tag:
                    yield event.step, value.simple_value


class Ended(Batches):
    """A feed during whose batch the process is asked to end."""

    def __init__(self, step):
        super().__init__()
        self.step = step

    def __next__(self):
        if self.next == self.step:
            signal.raise_signal(signal.SIGTERM)
        return super().__next__()


@pytest.mark.parametrize("step", [0, 4, 8])
def test_a_run_that_is_asked_to_end_is_saved_and_goes_on_bit_by_bit(whole_fed, tmp_path, step):
    options = LoopOptions(resume="type this", save_every=1000)
    with pytest.raises(Terminated, match=f"toy is saved after step {step + 1}: type this"):
        fed(Ended(step), folder=tmp_path, options=options)
    said = []
    resumed = fed(folder=tmp_path, options=options, say=said.append)
    assert said[0] == f"toy: resuming after step {step + 1}"
    chex.assert_trees_all_equal(resumed, whole_fed)


def test_states_are_saved_in_longer_intervals_than_reports(tmp_path):
    said = []
    fed(folder=tmp_path, options=LoopOptions(save_every=6), say=said.append)
    assert [line.split("  ")[0] for line in said] == [f"toy {step}/12" for step in (3, 6, 9, 12)]
    assert sorted(int(p.name) for p in (tmp_path / "toy").iterdir() if p.name.isdigit()) == [6, 12]


def test_a_step_that_is_not_finite_stops_the_run_and_names_its_spectra(tmp_path):
    log = tmp_path / "log"
    with pytest.raises(TrainingError) as caught:
        fed(Batches(poison=7), folder=tmp_path / "states", options=LoopOptions(log=log))
    message = str(caught.value)
    assert "not finite at step 7, whose batch has the spectra star 28, star 29, star 30, star 31" in message
    assert message.endswith(f"the last good state is {tmp_path}/states/toy/6")
    assert (tmp_path / "states" / "toy" / "6").is_dir()
    assert [line["step"] for line in monitor.read(log)] == [3, 6]


def test_all_spectra_of_a_larger_batch_are_listed(tmp_path):
    config = dataclasses.replace(CONFIG, batch=8)
    feed = Batches(poison=1)
    whole = feed.__next__

    class Larger(Batches):
        def __next__(self):
            parts = [whole(), whole()]
            return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    with pytest.raises(
        TrainingError, match=r"star 0, star 1, star 2, star 3 and 4 others, listed in .*txt; th"
    ):
        fed(Larger(), config=config, options=LoopOptions(log=tmp_path))
    (path,) = tmp_path.glob("not-finite-*.txt")
    assert path.read_text().split("\n")[:-1] == [f"star {k}" for k in range(8)]


def test_the_mean_gradient_of_the_parts_is_that_of_the_batch(tmp_path):
    def without_noise(params, stats, data, key):
        batch = data["batch"]
        error = batch["x"] @ params["w"] - batch["y"]
        return (error**2).mean(), (stats, {"largest": jnp.abs(error).max()})

    results = [fed(loss=without_noise, options=LoopOptions(accumulate=parts)) for parts in (1, 2, 4)]
    for one in results[1:]:
        chex.assert_trees_all_close(one, results[0], rtol=1e-5)  # sums of float32 in another order
    with pytest.raises(ConfigError, match="batch of 4 cannot be divided by accumulate 3"):
        fed(options=LoopOptions(accumulate=3))


def test_the_average_of_the_parameters_is_the_result():
    decay, chunks = 0.6, []
    config = dataclasses.replace(CONFIG, chunk=1, weight_decay=0.0)

    def validate(params, stats):
        chunks.append(np.asarray(params["w"]))
        return {}

    fed(config=config, validate=validate)
    expected = np.zeros(5)
    for values in chunks:
        expected = decay * expected + (1 - decay) * values
    averaged, _ = fed(config=config, options=LoopOptions(ema=decay))
    np.testing.assert_allclose(averaged["w"], expected, rtol=1e-5)  # float32


def test_reports_are_lines_of_json_and_curves_and_a_resumed_run_replaces_its_own(tmp_path):
    log = LoopOptions(log=tmp_path / "log", save_every=6)

    def evaluation(params, stats, data, key):
        return {"loss": ((data["batch"]["x"] @ params["w"] - data["batch"]["y"]) ** 2).mean()}

    options = {"evaluation": evaluation, "held_out": [next(Batches()), next(Batches())]}
    with pytest.raises(KeyboardInterrupt):
        fed(folder=tmp_path / "states", options=log, say=stop_after(9), **options)
    assert [line["step"] for line in monitor.read(log.log)] == [3, 6, 9]
    fed(folder=tmp_path / "states", options=log, **options)
    lines = monitor.read(log.log)
    assert [line["step"] for line in lines] == [3, 6, 9, 12]
    for line in lines:
        assert {"stage", "seconds", "spectra_per_s", "seconds_left", "gradient norm", "loss"} <= line.keys()
    assert lines[-1]["held-out loss"] < lines[0]["held-out loss"]
    assert imread(tmp_path / "log" / "curves.png").std() > 0
