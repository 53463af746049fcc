"""Find the cells in pictures with a trained model: python infer.py --checkpoint runs/NAME/best.pt --data DIR"""

from maskrcnn.cli import run_command

if __name__ == "__main__":
    run_command("predict")
