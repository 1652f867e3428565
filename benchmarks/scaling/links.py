"""What the links between GPUs reach, with the source of each number. Imports nothing of ``benchmarks``.

A transfer of b bytes over one link takes latency + b / bytes_per_s. A collective that passes its data around a ring of W ranks on
n nodes, as NCCL's all-gather and reduce-scatter do, takes for chunks of b bytes

    START + (W - n) nvlink.latency + (n - 1) network.latency + (W - 1) b / bus,     bus = min(nvlink, rails network)

where ``rails`` network cards of a node work side by side; on one node bus = nvlink.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Link:
    """One direction of a connection between two GPUs."""

    bytes_per_s: float
    latency: float  # seconds

    def seconds(self, count: float) -> float:
        """The time of a transfer of ``count`` bytes."""
        return self.latency + count / self.bytes_per_s


@dataclass(frozen=True)
class Cluster:
    """Nodes of ``per_node`` GPUs. ``network`` is one network card, ``rails`` the number of those in a node."""

    nvlink: Link
    network: Link
    per_node: int = 8
    rails: int = 8

    def nodes(self, world: int) -> int:
        return -(-world // self.per_node)

    def hops(self, world: int) -> list[Link]:
        """The link from each rank to the next one; the last leads to rank 0. Between nodes, one GPU of each node sends."""
        if world <= self.per_node:
            return [self.nvlink] * world
        return [self.network if (r + 1) % self.per_node == 0 or r == world - 1 else self.nvlink for r in range(world)]

    def collective(self, world: int, chunk_bytes: float) -> float:
        """Seconds of an all-gather or a reduce-scatter of ``world`` chunks."""
        if world == 1:
            return 0.0
        nodes = self.nodes(world)
        bus = self.nvlink.bytes_per_s
        if nodes > 1:
            bus = min(bus, self.rails * self.network.bytes_per_s)
        latency = START + (world - nodes) * self.nvlink.latency + (nodes - 1) * self.network.latency
        return latency + (world - 1) * chunk_bytes / bus


#: NCCL's own model of a ring with its Simple protocol, src/graph/tuning.cc (2.18 and later): 8.4 us to begin, 3.4 us for a hop over
#: NVLink, 14.0 us for a hop over the network.
START = 8.4e-6
#: 450 GB/s on the data sheet. NCCL's maintainers expect 360 GB/s of all_gather_perf on 8 H100 (NVIDIA/nccl-tests issue 326) and
#: call 370 GB/s the rate without protocol (issue 212).
NVLINK4 = Link(360e9, 3.4e-6)
#: 400 Gb/s on the data sheet of a ConnectX-7. Its maintainers expect 46 to 48 GB/s of each card (NVIDIA/nccl-tests issue 290),
#: and no more than one card for a transfer between two GPUs (issue 267).
NDR400 = Link(46e9, 14.0e-6)
#: Eight H100 or H200 with NVSwitch, and a ConnectX-7 for each (NVIDIA, DGX H100 user guide, table of network modules).
HGX = Cluster(NVLINK4, NDR400)
