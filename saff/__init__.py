"""Foreground masks from unlabelled images: semantic-apparent feature fusion on Ray."""

import lazy_loader

__version__ = "0.2.0"

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submodules=[
        "arrays",
        "cluster",
        "config",
        "edges",
        "encoding",
        "images",
        "labeling",
        "metrics",
        "report",
        "saliency",
        "semantic",
        "storage",
        "superpixels",
        "weighting",
    ],
    submod_attrs={"labeling": ["LabeledImage", "Models", "label_image", "load_models"]},
)
