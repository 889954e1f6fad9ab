"""`python -m pianissimo`: the command line without the installed script."""

import sys

from pianissimo.cli import main

if __name__ == "__main__":
    sys.exit(main())
