"""``python -m maskrcnn``: the command line without the installed script."""

from maskrcnn.cli import main

if __name__ == "__main__":
    main()
