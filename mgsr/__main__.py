"""`python -m mgsr`."""

import sys

from mgsr.cli import main

sys.exit(main())
