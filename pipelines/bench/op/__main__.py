"""`python -m pipelines.bench.op`: the benchmark of the op on a machine with torch alone."""

import sys

from pipelines.bench.op.command import main

sys.exit(main())
