"""`python -m pipelines.cli`: the command line where the console script is not installed, as in a Ray Job."""

import sys

from pipelines.cli.main import main
from pipelines.cluster.sealed import open_sealed

open_sealed()
sys.exit(main())
