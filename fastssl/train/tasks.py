"""The downstream tasks of ``fastssl eval``, by the options that ask for them."""

import argparse

from fastssl.train.downstream import TrainedRun


def asked_for(given: argparse.Namespace) -> bool:
    """Whether the options ask for a task; the usual scores and pictures are left out then."""
    return given.few_shot or given.retrieve or given.fine_tune is not None


def do_tasks(run: TrainedRun, given: argparse.Namespace) -> None:
    """Does what the options ask for. Embeddings are computed once for all tasks that need them."""
    if given.few_shot:
        from fastssl.train.few_shot import few_shot

        few_shot(run, given.labels, given.draws, given.seed or 0)
    if given.retrieve:
        from fastssl.train.retrieval import retrieve

        retrieve(run, given.top)
    if given.fine_tune is not None:
        from fastssl.train.fine_tune import LR, FineTuneOptions, fine_tune

        how = FineTuneOptions(given.fine_tune, given.lr or LR, given.labels_per_class, given.seed or 0)
        fine_tune(run, how)
