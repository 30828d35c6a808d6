"""Saliency back ends that fail, for the workers of a Ray that tests start.

They fail at photographs of one size, so not at the small image on which a run tries its settings.
What is to happen once leaves a mark in the folder ``SAFF_TEST_MARKS``.
"""

import os
import signal
import time

import numpy as np

from saff import config, saliency
from saff.errors import StorageError

HEIGHT = 127  # of one of the photographs in the fixture ``crops``


class KillsAlways:
    """Ends its process at one of the photographs."""

    def __init__(self):
        self.alive = saliency.load(config.default().saliency)

    def __call__(self, image):
        if image.shape[0] == HEIGHT:
            self.fail()
        return self.alive(image)

    def on_regions(self, image, superpixels):
        """As the back end in whose place this one stands."""
        if image.shape[0] == HEIGHT:
            self.fail()
        return self.alive.on_regions(image, superpixels)

    def fail(self):
        os.kill(os.getpid(), signal.SIGKILL)


class KillsOnce(KillsAlways):
    """Ends its process at one of the photographs, the first time."""

    def fail(self):
        if first_time("killed"):
            super().fail()


class TakesMemory(KillsAlways):
    """Takes 5 GiB at one of the photographs, slower than a monitor looks, the first time."""

    def fail(self):
        if not first_time("hunger"):
            return
        kept = []
        for _ in range(40):
            kept.append(np.ones(2**24))
            time.sleep(0.05)
        time.sleep(60)
        first_time("hunger.survived")


class Raises:
    """Raises an error that is the machine's at every photograph."""

    error = None

    def __call__(self, image):
        if image.shape[0] > 32:  # no trial before the run
            raise self.error
        return image[..., 0] / 255


class NoMemory(Raises):
    error = MemoryError("16 GiB for one array")


class NoSpace(Raises):
    error = StorageError("no space left to write a draft")


def first_time(mark):
    """Leave a mark; False if it was left before."""
    try:
        os.close(os.open(os.path.join(os.environ["SAFF_TEST_MARKS"], mark), os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return False
    return True


class KillsOnceBeforeItsRecord:
    """An export's part that dies once when its files are written and nothing says so yet."""

    def __init__(self, export, part):
        self.export, self.part = export, part

    def __call__(self, task):
        done = self.export.do_part(task)
        if task["part"] == self.part and first_time("killed an export"):
            self.export.records.remove(self.part.replace(".parquet", ".json"))
            os.kill(os.getpid(), signal.SIGKILL)
        return done
