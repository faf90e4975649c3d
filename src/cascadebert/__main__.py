"""``python -m cascadebert``."""

from cascadebert.cli.main import main

main()
