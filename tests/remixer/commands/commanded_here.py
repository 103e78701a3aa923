"""Commands in this process."""

import json
from dataclasses import dataclass

from typer.testing import CliRunner

from remixer.cli import app


@dataclass(frozen=True)
class Said:
    """What a command said, and the code that it ended with."""

    code: int
    out: str
    err: str

    @property
    def data(self):
        """What is on stdout, which must be JSON and nothing else."""
        return json.loads(self.out)


def says(*args):
    """Run a command."""
    result = CliRunner().invoke(app, [str(each) for each in args])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return Said(result.exit_code, result.stdout, result.stderr)
