"""``python -m gpnsf`` is the command ``gpnsf``."""

from __future__ import annotations

import sys

from gpnsf.cli import main

if __name__ == "__main__":
    sys.exit(main())
