"""FAMILY of diagnoses: pure functions from measured facts to ok | warn | fail, each with number and advice."""

from luthier.core.family import Family

DIAGNOSES = Family("diagnoses", __name__)
