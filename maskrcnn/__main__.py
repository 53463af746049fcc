"""``python -m maskrcnn``: the command line without its script."""

from maskrcnn.cli import main

if __name__ == "__main__":
    main()
