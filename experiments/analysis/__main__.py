"""`python -m experiments.analysis`."""

import sys

from experiments.analysis.run import main

sys.exit(main())
