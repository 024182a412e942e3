"""FAMILY of tasks: what a row is trained on, and what is measured."""

from luthier.core.family import Family

TASKS = Family("tasks", __name__)
