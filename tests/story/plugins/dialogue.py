"""A format of one's own: {"asks": …, "says": …}."""

from luthier.core.types import Turn
from luthier.data.formats import FORMATS
from luthier.data.formats.flat import Flat


@FORMATS.register("asks_says")
class AsksSays(Flat):
    """A question and what is said."""

    covers = frozenset()
    aliases = {"asks": (), "says": ()}
    required = ("asks", "says")

    def examples(self, fields, task):
        yield fields.example([Turn("user", fields.text("asks")), Turn("assistant", fields.text("says"))])
