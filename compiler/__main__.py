"""`python -m intformer` is the command `intformer`."""

import sys

from intformer.cli import main

sys.exit(main())
