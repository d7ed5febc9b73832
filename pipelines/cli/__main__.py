"""`python -m pipelines.cli`: the command line where the console script is not installed, as in a Ray Job."""

import sys

from pipelines.cli.main import main
from pipelines.cluster.sealed import open_sealed
from sparse_detr.errors import ConfigError

try:
    open_sealed()
except ConfigError as error:
    sys.exit(f"error: {error}")
sys.exit(main())
