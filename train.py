"""Train Mask R-CNN on folders of cell pictures: python train.py --data DIR --mask-loss dice"""

from maskrcnn.cli import run_command

if __name__ == "__main__":
    run_command("train")
