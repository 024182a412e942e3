"""FAMILY of augmenters: training inputs only, originals kept, seeded by row."""

from luthier.core.family import Family

AUGMENTERS = Family("augmenters", __name__)
