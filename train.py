"""Train Mask R-CNN on a folder of cell pictures: python train.py --data DIR --mask-loss dice"""

import sys

import tyro

from maskrcnn.engine.config import TrainCli
from maskrcnn.engine.train import NonFiniteLossError, train
from maskrcnn.errors import one_line_errors

if __name__ == "__main__":
    with one_line_errors():
        try:
            train(tyro.cli(TrainCli, description=__doc__))
        except NonFiniteLossError as error:
            sys.exit(f"error: {error}")
        except KeyboardInterrupt:
            sys.exit(130)
