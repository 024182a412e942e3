"""FAMILY of tuning methods. A method attaches to a base and gives an `Attached`; one loop trains any of them."""

from luthier.core.family import Family

METHODS = Family("methods", __name__)
