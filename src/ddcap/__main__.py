"""`python -m ddcap` is `ddcap`."""

import sys

from ddcap.cli import main

sys.exit(main())
