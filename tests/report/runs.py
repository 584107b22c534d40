"""A run folder as `specjax adapt` writes it, with scores of random predictions."""

import numpy as np

from specjax.checkpoints import save_adapter
from specjax.report import metrics, results

FACTORS = {"mlp2": {"dense_0": {"lora_a": np.ones((2, 5, 3)), "lora_b": np.zeros((2, 3, 4))}}}
LORA = {"lora4": {"scale": 2.0, "ranks": {"mlp2/dense_0": 3}}}
CONFIGURATIONS = {"zero-shot-mlp2": "zero-shot", "lora4": "adapted", "kernel-ridge": "baseline"}
STARS, SEEDS = 30, 3


def write_run(folder, base="1234", targets=("deep", "shallow"), spectra="/home/somebody/secret/spectra.h5"):
    """Write table.json, config.json, predictions, a plot and one adapter per target; return the rows."""
    rng = np.random.default_rng(0)
    rows, columns = [], []
    ids = np.array([f"star-{number}" for number in range(STARS)])
    for target in targets:
        truth = np.tile(rng.uniform(-2.5, 0.5, STARS), (SEEDS, 1))
        for name, kind in CONFIGURATIONS.items():
            predicted = truth + rng.normal(0, 0.1, truth.shape)
            scores = metrics.summarise(truth, predicted, fe_h=truth, stars=np.tile(ids, (SEEDS, 1)))
            rows += results.table_rows(target, name, scores, kind=kind)
            columns.append(_columns(target, name, ids, truth, predicted))
        config = {"configuration": "lora4", "label": "fe_h", "target": target, "seeds": SEEDS, "lora": LORA}
        config |= {"sigma": 0.1, "fwhm": None, "preparation": {}}
        save_adapter(folder / "adapters" / target / "lora4", config=config, arrays=FACTORS, base=base)
    results.write_table(folder, rows)
    results.write_calibration(folder, [_coverage(target) for target in targets])
    about = {"adapt": {"train": 20, "validate": 4}, "spectra": spectra, "labels": "labels.ecsv"}
    results.write_config(folder, {**about, "refused": {"a": "low_snr"}, "outside_training": {"deep": {}}})
    results.write_predictions(folder, {key: np.concatenate([c[key] for c in columns]) for key in columns[0]})
    (folder / "sigma.png").write_bytes(b"a picture")
    return rows


def _coverage(target):
    numbers = {"coverage68": 0.71, "coverage95": 0.94, "width68": 0.2, "width95": 0.4, "crps": 0.05}
    ends = {f"coverage{level}{end}": 0.5 for level in (68, 95) for end in ("_lo", "_hi")}
    about = {"target": target, "label": "fe_h", "configuration": "lora4", "subset": "all", "n_stars": STARS}
    return {**about, "n_predictions": STARS * SEEDS, **numbers, **ends}


def _columns(target, configuration, ids, truth, predicted):
    return {
        "target": np.full(truth.size, target),
        "configuration": np.full(truth.size, configuration),
        "seed": np.repeat(np.arange(SEEDS), STARS),
        "id": np.tile(ids, SEEDS),
        "fe_h": truth.ravel(),
        "fe_h_predicted": predicted.ravel(),
    }
