"""The schedule of a run is the recipe's; what that leaves open is the method's own."""

from luthier.methods import METHODS
from luthier.pipeline import learn
from luthier.recipe import Recipe


def test_a_method_brings_its_own_schedule_and_the_recipe_wins():
    """What a member declares is what its runs do."""
    for name in METHODS.names():
        spec = {"stack": "{name: stack, preset: mam}", "peft": "{name: peft, type: loha}"}.get(name, name)
        found = learn.schedule(Recipe.parse(f"method: {spec}\n")).model_dump()
        assert found == {"floor": 0.0, **METHODS.get(name).default_schedule}
    assert learn.schedule(Recipe.parse("method: prefix\n")).name == "linear"
    chosen = learn.schedule(Recipe.parse("method: prefix\ntrain: {schedule: {warmup: 3}}\n"))
    assert (chosen.name, chosen.warmup) == ("linear", 3)
    chosen = learn.schedule(Recipe.parse("method: prefix\ntrain: {schedule: {name: cosine, warmup: 0.2}}\n"))
    assert (chosen.name, chosen.warmup) == ("cosine", 0.2)
