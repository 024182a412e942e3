"""A method of one's own: only the last norm is trained."""

from luthier.core.settings import Settings
from luthier.methods import METHODS


@METHODS.register("last_norm")
class LastNorm:
    """Only the final norm."""

    default_lr = 1e-2
    default_schedule = {"name": "linear", "warmup": 0.05}
    lr_reason = "few weights"

    class Params(Settings):
        """One setting."""

        pattern: str = "model.norm.weight"

    def __init__(self, params=None):
        self.params = params or self.Params()

    def attach(self, base, seed):
        from luthier.methods.modules.direct import Direct

        return Direct(base, (self.params.pattern,), self.name)

    @classmethod
    def reload(cls, folder, base, trainable=False):
        from luthier.methods.modules.direct import Direct

        return Direct.read(folder, base, trainable, cls.name)

    def formula(self, base):
        from luthier.methods.modules.tuned import parameter_count

        return parameter_count(base, (self.params.pattern,))
