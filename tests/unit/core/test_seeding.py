"""Random streams hang on names, not on order."""

from luthier.core.seeding import derive, generator


def test_streams_do_not_depend_on_what_ran_before():
    first = generator(42, "augment", 3, "row-7").random(4).tolist()
    generator(42, "augment", 3, "row-8").random(100)
    assert generator(42, "augment", 3, "row-7").random(4).tolist() == first
    assert derive(42, "a", "b") != derive(42, "ab")
    assert derive(42, "a") != derive(43, "a")
