"""Find the cells in pictures with a trained model: python infer.py --checkpoint runs/NAME/best.pt --data DIR"""

import sys

import tyro

from maskrcnn.errors import one_line_errors
from maskrcnn.export.config import InferConfig
from maskrcnn.export.infer import infer

if __name__ == "__main__":
    with one_line_errors():
        try:
            outcome = infer(tyro.cli(InferConfig, description=__doc__))
        except KeyboardInterrupt:
            sys.exit(130)
        sys.exit(1 if outcome.failures else 0)
