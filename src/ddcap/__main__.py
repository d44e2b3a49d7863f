"""`python -m ddcap` is `ddcap`."""

import sys

from ddcap.commands import main

sys.exit(main())
