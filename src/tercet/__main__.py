"""`python -m tercet`, which is also what torchrun starts: `torchrun ... -m tercet ppo RECIPE`."""

import sys

from tercet.cli import main

sys.exit(main())
