"""One thread per image: results that no thread count changes, and cores that do not fight."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import cv2
import torch
from threadpoolctl import ThreadpoolController


@cache
def _pools() -> ThreadpoolController:
    return ThreadpoolController()  # looks through the loaded libraries once: milliseconds


@contextmanager
def single_thread() -> Iterator[None]:
    """Run torch, OpenCV and BLAS on the calling thread alone, and restore their settings after.

    A sum split over threads rounds differently, so a result would depend on the machine.  Work is
    spread over images instead: one image per CPU slot.
    """
    torch_threads, cv2_threads = torch.get_num_threads(), cv2.getNumThreads()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    try:
        with _pools().limit(limits=1, user_api="blas"):
            yield
    finally:
        torch.set_num_threads(torch_threads)
        cv2.setNumThreads(cv2_threads)
