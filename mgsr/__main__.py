"""`python -m mgsr`."""

import sys

from mgsr.cli.main import main

sys.exit(main())
