"""Import torchvision beside any build of torch.

PyPI's torchvision is built for CUDA.  Beside a CPU build of torch its compiled operators do not
load, and ``import torchvision`` stops where it registers a shape rule for one of them.  saff uses
only its pure-Python parts, so the two schemas are declared here if they are missing; calling the
operators would still fail, as it should.
"""

import torch

_SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)


def _declare_missing_operators() -> "torch.library.Library | None":
    """Try the import; declare the operators only where it fails for want of them."""
    try:
        import torchvision  # noqa: F401
    except RuntimeError as error:
        if "torchvision::" not in str(error):
            raise
    else:
        return None
    library = torch.library.Library("torchvision", "DEF")  # type: ignore[no-untyped-call]
    for schema in _SCHEMAS:
        library.define(schema)  # type: ignore[no-untyped-call]
    return library


_library = _declare_missing_operators()  # kept: the schemas go when the library object does

from torchvision import models  # noqa: E402
from torchvision.ops.misc import Permute  # noqa: E402

__all__ = ["Permute", "models"]
