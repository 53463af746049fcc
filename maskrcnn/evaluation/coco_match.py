"""pycocotools' evaluation in time proportional to the overlapping pairs, for pictures with thousands of cells."""

from __future__ import annotations

from typing import Any

import numpy as np
from pycocotools.cocoeval import COCOeval


class DenseCOCOeval(COCOeval):
    """COCOeval that only compares detections with cells that they overlap enough to be matched.

    pycocotools compares each detection with each cell of its class in a Python loop: half a minute for 1,000 detections
    and 2,000 cells in one picture. Pairs below the lowest IoU threshold never match, so that skipping them changes
    nothing: precision and recall are those of COCOeval.
    """

    def evaluateImg(self, imgId: int, catId: int, aRng: list[float], maxDet: int) -> dict[str, Any] | None:
        """The result of pycocotools' method of this name, for one picture, class, range of areas and limit."""
        cells, found = self._gts[imgId, catId], self._dts[imgId, catId]
        if not cells and not found:
            return None
        ignored = np.array([bool(g["ignore"]) or not aRng[0] <= g["area"] <= aRng[1] for g in cells], bool)
        order = np.argsort(ignored, kind="mergesort")  # cells that count come first
        cells, ignored = [cells[i] for i in order], ignored[order]
        best_first = np.argsort([-d["score"] for d in found], kind="mergesort")[:maxDet]
        found = [found[i] for i in best_first]
        thresholds = np.minimum(self.params.iouThrs, 1 - 1e-10)
        ious = np.asarray(self.ious[imgId, catId]).reshape(-1, len(cells) or 1)[: len(found), order]
        crowd = [bool(g["iscrowd"]) for g in cells]
        cell_matches = np.zeros((len(thresholds), len(cells)))
        matches = np.zeros((len(thresholds), len(found)))
        outside = np.array([not aRng[0] <= d["area"] <= aRng[1] for d in found], bool)
        found_ignored = np.tile(outside, (len(thresholds), 1))  # matched detections follow their cell instead
        for d, row in enumerate(ious):
            candidates = np.flatnonzero(row >= thresholds.min()).tolist()
            for t, threshold in enumerate(thresholds if candidates else ()):
                best, best_iou = -1, threshold
                for g in candidates:
                    if cell_matches[t, g] > 0 and not crowd[g]:
                        continue
                    if best >= 0 and not ignored[best] and ignored[g]:
                        break
                    if row[g] >= best_iou:
                        best, best_iou = g, row[g]
                if best >= 0:
                    found_ignored[t, d] = ignored[best]
                    matches[t, d], cell_matches[t, best] = cells[best]["id"], found[d]["id"]
        return {
            "image_id": imgId,
            "category_id": catId,
            "aRng": aRng,
            "maxDet": maxDet,
            "dtIds": [d["id"] for d in found],
            "gtIds": [g["id"] for g in cells],
            "dtMatches": matches,
            "gtMatches": cell_matches,
            "dtScores": [d["score"] for d in found],
            "gtIgnore": ignored.astype(int),
            "dtIgnore": found_ignored,
        }
