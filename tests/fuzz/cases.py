"""Every public function of ``fastssl.functional`` and ``fastssl.masking``, and the schedules of ``fastssl.momentum``."""

from . import latents, losses, masking, momentum

CASES = [*latents.CASES, *losses.CASES, *masking.CASES, *momentum.CASES]
