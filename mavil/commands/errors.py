"""What the command line says with its exit code."""

from __future__ import annotations

from mavil.engine.trainer import Interrupted
from mavil.structs import UserError

EXIT_CODES: dict[type[Exception], int] = {UserError: 2, Interrupted: Interrupted.exit_code}
"""By kind of error. 1 is left to unexpected ones (with a traceback), 3 to a demo whose checks failed."""
EXIT_CHECKS_FAILED = 3
