"""Compare our EfficientNet-Lite with timm's: features, time, and what importing timm costs; JSON.

python -m pip install -c constraints.txt timm && python tests/benchmarks/timm_trunk.py

timm's names differ, so the published weights are loaded by position.
"""

import json
import statistics
import subprocess
import sys
from itertools import pairwise

import torch
from bench_label_image import machine, median_ms
from skimage import data
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from saff.backbones import efficientnet_lite
from saff.backbones.inputs import to_input
from saff.checkpoints import open_weights, read_state
from saff.semantic.cam import to_side
from saff.threads import single_thread

PHOTOGRAPHS = ("astronaut", "chelsea", "coffee", "rocket")
STARTS = 5
COST = """
import json, time
import saff.labeling
def now(): return time.process_time(), int(open("/proc/self/statm").read().split()[1]) * 4096
seconds, resident = now()
import saff.torchvision_import, timm
after = now()
print(json.dumps([seconds, resident, after[0] - seconds, after[1] - resident]))
"""


class TimmLite(nn.Module):
    """timm's network, its normalisations folded, that gives the levels that ours gives."""

    def __init__(self, name):
        import timm

        import saff.torchvision_import  # noqa: F401  # before timm, which imports torchvision

        super().__init__()
        self.network = timm.create_model(f"tf_{name}").eval()
        names = list(self.network.state_dict())
        state = read_state(open_weights(efficientnet_lite.packaged(name)))
        self.network.load_state_dict(dict(zip(names, state.values(), strict=True)))
        for module in self.network.modules():
            children = list(module.named_children())
            for (conv, first), (norm, second) in pairwise(children):
                if isinstance(first, nn.Conv2d) and isinstance(second, nn.BatchNorm2d):
                    setattr(module, conv, fuse_conv_bn_eval(first, second))
                    setattr(module, norm, second.act)

    def forward(self, x):
        x = self.network.bn1(self.network.conv_stem(x))
        levels = []
        for stage in self.network.blocks:
            levels.append(x := stage(x))
        return [*levels[3:], self.network.bn2(self.network.conv_head(x))]


def main():
    compared = {}
    for name in efficientnet_lite.FAMILY:
        ours = efficientnet_lite.load(name)[0].eval()
        efficientnet_lite.fuse_layers(ours)
        theirs, inputs = TimmLite(name), Inputs()
        with single_thread(), torch.inference_mode():
            images = [to_side(getattr(data, photo)(), 512, 32) for photo in PHOTOGRAPHS]
            xs = [to_input(image[None], inputs).contiguous() for image in images]
            pairs = [p for x in xs for p in zip(ours(x), theirs(x), strict=True)]
            compared[name] = {
                "identical levels": sum(torch.equal(a, b) for a, b in pairs),
                "levels": len(pairs),
                "ours, ms": median_ms(lambda: ours(xs[0])),  # noqa: B023
                "timm, ms": median_ms(lambda: theirs(xs[0])),  # noqa: B023
            }
    command = [sys.executable, "-c", COST]
    starts = [json.loads(subprocess.check_output(command)) for _ in range(STARTS)]
    medians = [statistics.median(column) for column in zip(*starts, strict=True)]
    seconds, resident, more_seconds, more_resident = medians
    print(
        json.dumps(
            {
                "benchmark": "EfficientNet-Lite of timm in place of ours, 512 pixels, one thread",
                "networks": compared,
                "a worker before": {"cpu s": round(seconds, 2), "MB": resident // 10**6},
                "timm adds": {"cpu s": round(more_seconds, 2), "MB": more_resident // 10**6},
                **machine(),
            },
            indent=1,
        )
    )


class Inputs:
    mean, std = efficientnet_lite.MEAN, efficientnet_lite.STD


if __name__ == "__main__":
    main()
