import cv2
import pytest
import torch
from threadpoolctl import threadpool_info, threadpool_limits

from saff.threads import single_thread


def blas_threads():
    return {pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"}


def counts():
    return torch.get_num_threads(), cv2.getNumThreads(), blas_threads()


@pytest.fixture
def two_threads():
    """Let everything have two threads, and put back what it had."""
    before = torch.get_num_threads(), cv2.getNumThreads()
    torch.set_num_threads(2)
    cv2.setNumThreads(2)
    with threadpool_limits(2, user_api="blas"):
        yield
    torch.set_num_threads(before[0])
    cv2.setNumThreads(before[1])


@pytest.mark.usefixtures("two_threads")
def test_one_thread_inside_and_the_same_as_before_outside():
    assert counts() == (2, 2, {2})
    with single_thread():
        assert counts() == (1, 1, {1})
        with single_thread():
            pass
        assert counts() == (1, 1, {1})
    assert counts() == (2, 2, {2})


@pytest.mark.usefixtures("two_threads")
def test_an_error_restores_them_too():
    with pytest.raises(KeyError), single_thread():
        raise KeyError
    assert counts() == (2, 2, {2})
