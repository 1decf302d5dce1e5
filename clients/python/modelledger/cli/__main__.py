"""`python -m modelledger.cli`: the command line of this very interpreter."""

from modelledger.cli import main

main()
