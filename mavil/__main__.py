"""``python -m mavil`` is ``mavil``."""

from mavil.cli import main

main()
