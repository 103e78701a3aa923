"""Every family, in every form that it has: attentions as its configuration says, and a rewrite that changes nothing."""

import pytest
import transformers
from examine import examine
from families import CASES, FAMILIES
from family import Family
from known import KNOWN

pytestmark = pytest.mark.filterwarnings("ignore")  # models warn of many things that are none of ours


def case(family: Family, form: str) -> object:
    marks = [] if family.quick else [pytest.mark.zoo]
    if (reason := KNOWN.get((family.name, form))) is not None:
        marks.append(pytest.mark.xfail(reason=reason, strict=True))
    return pytest.param(family, form, marks=marks, id=f"{family.name.replace(' ', '_')}-{form}")


@pytest.mark.parametrize(("family", "form"), [case(family, form) for family, form in CASES])
def test_attentions_are_what_the_configuration_says_and_the_round_trip_is_exact(family, form):
    if not family.exists:
        pytest.skip(f"{family.name} is not in transformers {transformers.__version__}")
    outcome = examine(family, form)
    assert not outcome.problems, "\n".join(outcome.problems)
    assert not outcome.differences, "\n".join(outcome.differences)


def test_the_zoo_is_large_and_its_names_are_its_own():
    names = [family.name for family in FAMILIES]
    assert len(set(names)) == len(names)
    assert len({family.config for family in FAMILIES}) >= 60
    assert {name for name, _ in KNOWN} <= set(names)
