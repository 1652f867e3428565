"""What tests of several ops share."""

import torch


def at_thread_counts(call, counts=(1, 2, 3)):
    """The results of a call with different numbers of threads."""
    before = torch.get_num_threads()
    try:
        for count in counts:
            torch.set_num_threads(count)
            yield call()
    finally:
        torch.set_num_threads(before)
