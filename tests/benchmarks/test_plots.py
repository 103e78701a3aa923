"""Every result that has a picture can be drawn."""

import pytest
from plots import HERE, PLOTS, drawn
from result_files import measured


@pytest.mark.parametrize("name", [name for name in PLOTS if measured(name)])
def test_results_are_drawn(name, tmp_path):
    assert (HERE / "results" / f"{name}.png").exists()
    assert drawn(name, tmp_path).stat().st_size > 10_000
