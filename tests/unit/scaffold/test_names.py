"""A name is given once, in any spelling, and is refused where files could not have it."""

import pytest

from tandem.scaffold.names import Name, name_of, problems_of, problems_of_package


@pytest.mark.parametrize("given", ["plant_bed", "plant-bed", "PlantBed"])
def test_a_name_has_the_same_spellings_however_it_is_given(given: str) -> None:
    assert name_of(given) == Name("plant_bed", "PlantBed", "plant_beds")


@pytest.mark.parametrize(
    ("one", "several"), [("berry", "berries"), ("day", "days"), ("box", "boxes"), ("GlassDish", "glass_dishes")]
)
def test_several_of_a_thing_are_spelled_as_english_has_it(one: str, several: str) -> None:
    assert (name_of(one).plural, name_of(one).upper_plural) == (several, several.upper())


@pytest.mark.parametrize("given", ["", "1st", "a b", "a.b", "../a", "a_", "naïve", "class", "match", "a" * 41])
def test_what_no_file_or_class_can_be_called_is_refused(given: str) -> None:
    [problem] = problems_of("the command", given)
    assert problem.startswith(f"the command {given!r} ")


@pytest.mark.parametrize("given", ["json", "tandem", "google", "pytest"])
def test_a_domain_hides_no_module_that_is_there(given: str) -> None:
    [problem] = problems_of_package(given)
    assert problem.startswith(f"there is a Python module {given} already")
