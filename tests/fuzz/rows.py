"""Every public function of ``fastssl.functional`` and ``fastssl.masking``, and the schedules of ``fastssl.momentum``."""

from . import losses, masking, momentum

ROWS = [*losses.ROWS, *masking.ROWS, *momentum.ROWS]
