import numpy as np

from experiments.offset_prior import OffsetPrior, design

RNG = np.random.default_rng(0)
TRUE = np.array([0.2, 0.1, -0.3])


def survey(n, coefficients, noise=0.1, rng=RNG):
    """Predictions, and labels that are off by the offset and noise."""
    predicted = rng.uniform(-2.5, 0.4, n)
    return predicted, predicted + design(predicted) @ coefficients + noise * rng.normal(size=n)


def prior(spread, count=40):
    return OffsetPrior.of([survey(300, TRUE + spread * RNG.normal(size=3)) for _ in range(count)])


def test_the_prior_is_the_distribution_of_the_offsets():
    found = prior(spread=0.2, count=200)
    np.testing.assert_allclose(found.mean, TRUE, atol=4 * 0.2 / np.sqrt(200))
    np.testing.assert_allclose(np.sqrt(np.diag(found.covariance)), 0.2, rtol=0.25)  # 5% and the noise of fits


def test_gross_errors_of_labels_hardly_matter():
    wrong = []
    for _ in range(40):
        predicted, labels = survey(300, TRUE)
        labels[:10] += 5.0
        wrong.append((predicted, labels))
    np.testing.assert_allclose(OffsetPrior.of(wrong).mean, TRUE, atol=0.06)


def test_without_training_stars_the_offset_is_that_of_the_prior():
    found, others = prior(0.2), np.array([-2.0, 0.0])
    empty = np.empty(0)
    np.testing.assert_allclose(
        found.corrected(empty, empty, others), others + design(others) @ found.mean, rtol=1e-12
    )


def test_with_many_training_stars_the_prior_is_forgotten():
    another = np.array([-0.4, 0.3, 0.5])
    predicted, labels = survey(20000, another)
    others = np.linspace(-2.4, 0.3, 20)
    corrected = prior(0.2).corrected(predicted, labels, others)
    np.testing.assert_allclose(corrected, others + design(others) @ another, atol=0.02)


def test_metal_poor_stars_are_corrected_without_one_in_the_training():
    """Where the offsets of surveys are of one kind, those of other stars tell the one below the kink."""
    shape = np.array([1.0, 0.0, 2.0])
    surveys = [survey(300, size * shape, 0.02) for size in RNG.normal(size=30)]
    known = OffsetPrior.of(surveys)
    predicted, labels = survey(60, 0.3 * shape, 0.02)
    rich = predicted > -0.9
    others = np.array([-2.0])
    corrected = known.corrected(predicted[rich], labels[rich], others)
    np.testing.assert_allclose(corrected, others + 0.3 * (1 + 2), atol=0.1)


def test_the_noise_is_found():
    """By the formula for three coefficients, which is that of the full covariance."""
    for noise in (0.1, 0.4):
        predicted, labels = survey(400, TRUE, noise)
        found = prior(0.2)._noise(design(predicted), labels - predicted)
        assert abs(np.log(found / noise)) < 0.2  # the grid has steps of 0.23
