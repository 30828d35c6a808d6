"""Names for the arrays that travel between modules; shapes and ranges stand in each docstring."""

from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

Image: TypeAlias = NDArray[np.uint8]
"""uint8 (H, W, 3), RGB."""
LabelMap: TypeAlias = NDArray[np.int32]
"""int32 (H, W), labels 0 .. R-1, none missing."""
PixelMap: TypeAlias = NDArray[np.float32]
"""float32 (H, W), [0, 1]."""
Mask: TypeAlias = NDArray[np.uint8]
"""uint8 (H, W): 0 background, 1 foreground."""
Adjacency: TypeAlias = NDArray[np.int32]
"""int32 (E, 2), i < j, regions that share a pixel side."""
Features: TypeAlias = NDArray[np.float64]
"""float64 (R,) or (R, K)."""
Matrix: TypeAlias = NDArray[np.float64]
"""float64 (R, R)."""
AnyArray: TypeAlias = NDArray[Any]
"""Input that is checked and converted before use."""
