"""Every public function of ``fastssl.functional`` and ``fastssl.masking``, and the schedules of ``fastssl.momentum``."""

from . import losses, masking, momentum

CASES = [*losses.CASES, *masking.CASES, *momentum.CASES]
