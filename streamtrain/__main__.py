"""``python -m streamtrain`` is the ``streamtrain`` command."""

import sys

from streamtrain.cli.main import main

sys.exit(main())
