"""FAMILY of metrics: plain functions over predictions and references; one number, and one score a row where it has."""

from luthier.core.family import Family

METRICS = Family("metrics", __name__)
