"""``python -m pynode``: the same as the ``pynode`` command."""

import sys

from pynode.cli import main

if __name__ == "__main__":
    sys.exit(main())
