"""``python -m microtome``: the command line."""

import sys

from microtome.cli import main

sys.exit(main())
