"""`python -m cswin.openi`, or this file as the platform's start file; see docs/openi.md."""

import sys
from pathlib import Path

if not __package__:  # started by its path: import from the repository, not from the folder of this file
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from cswin.openi.job import main  # noqa: E402

if __name__ == "__main__":
    sys.exit(main())
