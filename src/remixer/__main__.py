"""`python -m remixer`, as torchrun starts it."""

from remixer.cli import app

app(prog_name="remixer")
