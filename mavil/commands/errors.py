"""What the command line says with its exit code."""

from __future__ import annotations

from mavil.engine.process.stopping import Interrupted
from mavil.engine.process.stopping import ignore_until_exit as ignore_until_exit
from mavil.pipelines.reading import PlanError
from mavil.structs import UserError

EXIT_CODES: dict[type[Exception], int] = {UserError: 2, PlanError: 2, Interrupted: Interrupted.exit_code}
"""By kind of error. 1 is left to unexpected ones (with a traceback), 3 to checks that failed (demo, HEAR's rules), 4 to a
pipeline, an ablation or HEAR tasks of which one failed."""
EXIT_CHECKS_FAILED = 3
EXIT_STAGE_FAILED = 4
