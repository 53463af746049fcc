"""Train Mask R-CNN on a folder of cell pictures: python train.py --data DIR --mask-loss dice"""

import sys

import tyro

from maskrcnn.distributed import launched_rank
from maskrcnn.engine.config import TrainCli
from maskrcnn.engine.steps import NonFiniteLossError
from maskrcnn.engine.train import train
from maskrcnn.errors import one_line_errors

if __name__ == "__main__":
    with one_line_errors():
        try:
            train(tyro.cli(TrainCli, description=__doc__))
        except NonFiniteLossError as error:
            sys.exit(f"error: {error}" if launched_rank() == 0 else 1)  # all processes raise it
        except KeyboardInterrupt:
            sys.exit(130)
