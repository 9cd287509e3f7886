"""``python -m alignloop.cli``."""

from alignloop.cli.main import main

main()
