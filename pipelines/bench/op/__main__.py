"""`python -m pipelines.bench.op`: the benchmark of the op on a machine with torch, numpy and jaxtyping."""

import sys

from pipelines.bench.op.command import main

sys.exit(main())
