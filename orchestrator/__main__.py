"""`python -m orchestrator` is the `powersweep` command."""

from orchestrator.cli import main

main()
