"""`python -m sinkscope.cli`."""

from sinkscope.cli import main

main()
