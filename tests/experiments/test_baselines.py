import numpy as np
import pytest

from experiments import baselines


@pytest.fixture(scope="module")
def predictions(problem):
    return baselines.run_baselines(**problem, zero_shot=0.5 * problem["target_labels"] - 1.0)


def test_every_baseline_predicts_every_test_star(problem, predictions):
    assert list(predictions) == ["kernel-ridge", "gp-target", "gp-joint", "affine"]
    for predicted in predictions.values():
        assert predicted.shape == problem["test"].shape
        assert np.isfinite(predicted).all()


def test_every_baseline_is_far_better_than_the_mean(problem, predictions):
    truth = problem["target_labels"][problem["test"]]
    for name, predicted in predictions.items():
        # The lines follow the label closely: a working regression leaves a tenth of the spread of the labels.
        assert np.std(predicted - truth) < 0.2 * np.std(truth), name


def test_predictions_do_not_depend_on_test_labels(problem, predictions):
    hidden = np.array(problem["target_labels"])
    for k, (train, test) in enumerate(zip(problem["train"], problem["test"], strict=True)):
        blind = hidden.copy()
        blind[test] = np.nan
        one = {**problem, "target_labels": blind, "train": train[None], "test": test[None]}
        for name, predicted in baselines.run_baselines(**one).items():
            np.testing.assert_array_equal(predicted[0], predictions[name][k], err_msg=name)


def test_results_do_not_depend_on_the_number_of_processes(problem, predictions):
    for name, predicted in baselines.run_baselines(**problem, jobs=2).items():
        np.testing.assert_array_equal(predicted, predictions[name], err_msg=name)


def test_joint_process_is_no_worse_than_the_target_alone(problem, predictions):
    truth = problem["target_labels"][problem["test"]]
    joint, alone = (np.std(predictions[name] - truth) for name in ("gp-joint", "gp-target"))
    assert joint < 1.1 * alone  # both are near the noise on a problem this easy


def test_recalibration_inverts_a_linear_distortion():
    truth = np.array([-2.0, -1.0, 0.0, 0.3])
    np.testing.assert_allclose(
        baselines.recalibrate(0.5 * truth - 1.0, truth, np.array([-1.25])), [-0.5], rtol=1e-12
    )


def test_recalibration_is_made_for_every_seed_with_its_own_training_stars():
    rng = np.random.default_rng(0)
    truth, predicted = rng.normal(size=20), rng.normal(size=(2, 20))
    order = np.stack([rng.permutation(20) for _ in range(2)])
    train, test = order[:, :12], order[:, 12:]
    made = baselines.recalibrate_seeds(predicted, truth, train, test)
    for z, a, b, row in zip(predicted, train, test, made, strict=True):
        np.testing.assert_array_equal(row, baselines.recalibrate(z[a], truth[a], z[b]))
    shared = baselines.recalibrate_seeds(predicted[0], truth, train, test)
    np.testing.assert_array_equal(shared[0], made[0])
