"""Every public function of ``fastssl.functional`` and ``fastssl.masking``, and the schedules of ``fastssl.momentum``."""

from . import distillation, latents, losses, masking, momentum, sketched

CASES = [*distillation.CASES, *latents.CASES, *losses.CASES, *masking.CASES, *momentum.CASES, *sketched.CASES]
