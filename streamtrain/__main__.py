"""``python -m streamtrain`` is the ``streamtrain`` command."""

import os
import sys

# Python puts the current folder first, as the command does not: a torch.py beside a run or a dataset would be imported.
if not os.path.isdir(__package__):  # noqa: PTH112 - a pathlib.py, too
    sys.path[:] = [place for place in sys.path if os.path.realpath(place) != os.path.realpath("")]

from streamtrain.cli.main import main

sys.exit(main())
