"""FAMILY of exporters: from a run to a folder that people use, with a certificate that it is the same model."""

from luthier.core.family import Family

EXPORTERS = Family("exporters", __name__)
