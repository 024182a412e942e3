"""FAMILY of window extensions; each plans a changed config and is applied by building the model with it."""

from luthier.core.family import Family

CONTEXTS = Family("contexts", __name__)
