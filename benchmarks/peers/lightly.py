"""lightly (Lightly AG): ``NTXentLoss(temperature)(z0, z1)`` and ``DCLLoss``; both normalise. Stores 4.2 N^2 floats.

On a GPU its boolean indexing synchronises with the host, so it cannot be captured in a CUDA graph. The same holds for the pointer
of its memory bank and for LARS, which asks the host whether each norm is zero.
"""

from fastssl.testing.updates import as_module, with_gradients

from . import Peer, ready_torchvision


def _loss(name: str, temperature: float):
    ready_torchvision()
    from lightly import loss

    module = getattr(loss, name)(temperature=temperature)
    return lambda z0, z1: module(z0, z1)


def _ema(momentum: float):
    ready_torchvision()
    from lightly.models.utils import update_momentum

    def bind(state):
        model, average = (as_module(state["model"], state[name]) for name in ("params", "ema"))
        return lambda: update_momentum(model, average, momentum)

    return bind


def _adopt(bank, state) -> None:
    """Gives a memory bank the queue (D, K) of the state, as its own rows (K, D); the state looks into the bank."""
    bank.bank, bank.bank_ptr = state["queue"].T.contiguous(), state["ptr"]
    state["queue"] = bank.bank.T


def _push():
    ready_torchvision()
    from lightly.models.modules.memory_bank import MemoryBankModule

    def bind(state):
        bank = MemoryBankModule(tuple(reversed(state["queue"].shape)))
        _adopt(bank, state)
        return lambda: bank._dequeue_and_enqueue(state["keys"])  # forward would copy the bank too

    return bind


def _moco_step(temperature: float):
    ready_torchvision()
    from lightly.loss import NTXentLoss

    def bind(state):
        module = NTXentLoss(temperature, memory_bank_size=tuple(reversed(state["queue"].shape)))
        _adopt(module.memory_bank, state)

        def step():
            query = state["query"].detach().requires_grad_()
            value = module(query, state["key"])
            value.backward()
            state["loss"], state["query_grad"] = value.detach(), query.grad

        return step

    return bind


def _larc(lr, momentum, weight_decay, trust_coefficient, eps):
    ready_torchvision()
    from lightly.utils.lars import LARS

    def bind(state):
        options = {"momentum": momentum, "weight_decay": weight_decay, "trust_coefficient": trust_coefficient, "eps": eps}
        return LARS(with_gradients(state), lr=lr, **options).step

    return bind


PEER = Peer(
    "lightly",
    {
        "nt_xent": lambda temperature: _loss("NTXentLoss", temperature),
        "dcl": lambda temperature: _loss("DCLLoss", temperature),
        "ema": _ema,
        "queue_push": _push,
        "moco_step": _moco_step,
        "larc": _larc,
    },
    distribution="lightly",
    differs={"moco": "normalises inside, and its memory bank copies itself and takes the new keys in the same call"},
    module="lightly",
    max_rows={"cpu": 16384},
)
