"""Every public function of ``fastssl.functional`` and ``fastssl.masking``, and the schedules of ``fastssl.momentum``."""

from . import crops, distillation, latents, losses, masking, momentum, redundancy, sketched, words

CASES = [
    *crops.CASES,
    *distillation.CASES,
    *latents.CASES,
    *losses.CASES,
    *masking.CASES,
    *momentum.CASES,
    *redundancy.CASES,
    *sketched.CASES,
    *words.CASES,
]
