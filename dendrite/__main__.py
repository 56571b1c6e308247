"""`python -m dendrite`: the command line."""

from dendrite.cli import app

app()
