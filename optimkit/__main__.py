"""`python -m optimkit`: see `optimkit.cli`."""

import sys

from optimkit.cli import main

sys.exit(main())
