"""Validation during training: scores after an epoch, selection of the best weights, and fitting of thresholds."""

from __future__ import annotations

import dataclasses
from typing import Any

from maskrcnn import distributed
from maskrcnn.checkpoint import build_model, load_checkpoint, save_checkpoint
from maskrcnn.engine.curves import CURVES, plot_metrics
from maskrcnn.engine.datasets import Datasets
from maskrcnn.engine.log import MetricsLog
from maskrcnn.engine.page import write_page
from maskrcnn.engine.run import BEST_BY, Run
from maskrcnn.evaluation.coco_ap import MAX_DETECTIONS
from maskrcnn.evaluation.dense import AT
from maskrcnn.evaluation.evaluate import evaluate
from maskrcnn.evaluation.thresholds import fit_thresholds
from maskrcnn.files import to_json, write_text
from maskrcnn.model import MaskRCNN
from maskrcnn.predict.predictor import Predictor

THRESHOLDS = "thresholds.json"


def validate(run: Run, datasets: Datasets, log: MetricsLog, title: str, plots: bool) -> None:
    """Score the current weights on the validation pictures, save them as ``best.pt`` if none were better, and show them
    in the run's curves and page.

    ``plots``: also write ``precision_recall.png`` and ``classes.png``.
    """
    model = run.scored_model
    predictor = _predictor(model, run.description, run)
    truth = datasets.truth if distributed.is_main() else {}
    results: list[dict[str, Any]] = []
    metrics = evaluate(predictor, datasets.val, truth=truth, plots=run.folder if plots else None, show=results.extend)
    better = metrics[BEST_BY] >= run.best
    run.validated = run.epoch
    if better:
        run.best = metrics[BEST_BY]

    def write() -> None:
        log.write({"step": run.step, "epoch": run.epoch, **metrics})
        print_validation(run.epoch, metrics)
        if better:
            (run.folder / THRESHOLDS).unlink(missing_ok=True)  # those of other weights
            weights = {"model": model.state_dict(), "step": run.step, "metrics": metrics}
            save_checkpoint(run.folder / "best.pt", {**weights, **run.description})
        if run.step > 0:
            plot_metrics(log.rows, run.folder / CURVES, title)
        write_page(run, predictor, datasets.val, truth, results, metrics)

    distributed.from_main(write)


def print_validation(epoch: int, metrics: dict[str, float]) -> None:
    """Print a line with AP at 1,000 and at COCO's 100 detections, TP/(TP+FP+FN) at three IoU, and AP50 by class and
    source."""
    limit = f"@{MAX_DETECTIONS}"
    prefix = f"mask/AP50{limit}/"
    values = ((key.removeprefix(prefix), value) for key, value in metrics.items() if key.startswith(prefix))
    parts = ", ".join(f"{name} {value:.3f}" for name, value in values)
    dense = ", ".join(f"{metrics[f'dense/{name}']:.3f}" for name in AT)
    print(
        f"validation after epoch {epoch}: mask AP {metrics[f'mask/AP{limit}']:.3f}, "
        f"AP50 {metrics[f'mask/AP50{limit}']:.3f} at {MAX_DETECTIONS} detections ({metrics['mask/AP']:.3f} and "
        f"{metrics['mask/AP50']:.3f} at 100); TP/(TP+FP+FN) {dense} at IoU "
        f"{', '.join(map(str, AT.values()))}; AP50 by part: {parts}",
        flush=True,
    )


def fit_best(run: Run, datasets: Datasets) -> None:
    """Fit the thresholds of ``best.pt`` on the validation pictures and save them in it, unless it has them already.

    :data:`THRESHOLDS` contains the score of every value that was tried.
    """
    path = run.folder / "best.pt"
    best = load_checkpoint(path)
    if "thresholds" in best:
        return
    truth = datasets.truth if distributed.is_main() else {}
    chosen = fit_thresholds(_predictor(build_model(best, path), best, run), datasets.val, truth)

    def write() -> None:
        best["model_options"]["nms_threshold"] = chosen.nms_threshold
        fitted = ("score_threshold", "mask_threshold", "overlap_factor")
        best["thresholds"] = {name: getattr(chosen, name) for name in fitted}
        save_checkpoint(path, best)
        write_text(run.folder / THRESHOLDS, to_json(dataclasses.asdict(chosen), indent=2) + "\n")
        pairs = zip(datasets.class_names, chosen.score_threshold, strict=True)
        scores = ", ".join(f"{name} {value}" for name, value in pairs)
        print(
            f"thresholds fitted on validation, saved in {path}: scores {scores}; masks {chosen.mask_threshold}; "
            f"suppression at IoU {chosen.nms_threshold}; scores of overlapping cells times {chosen.overlap_factor}",
            flush=True,
        )

    distributed.from_main(write)


def _predictor(model: MaskRCNN, description: dict[str, Any], run: Run) -> Predictor:
    """The predictor that a user would load, except that intensities are not stretched: the data set did that."""
    return Predictor(
        model,
        None,
        description["class_names"],
        run.device,
        run.precision,
        diameter=description.get("diameter"),
        resize=description.get("resize"),
    )
