"""Bytes and time of the gradient exchange on a cluster that isn't here.

    from gct import plan

    cluster = plan.Cluster(ranks=256, local_ranks=8, link=plan.Link(25e9))
    step = plan.Step(numel=7_000_000_000, seconds=0.9)
    speed = plan.calibrate(bits=2.0)  # of this machine, in under a second
    for prediction in plan.predict_all(cluster, step, speed, bits=2.0):
        print(prediction.scheme, prediction.exposed_seconds)

A message costs a latency and its bytes over the link's rate (Thakur, Rabenseifner and Gropp,
"Optimization of Collective Communication Operations in MPICH", 2005) on links that send and
receive at once. A ring all-reduce sends 2 (W-1)/W times the bytes from each of W ranks in 2 (W-1)
messages one after the other (Patarasuk and Yuan, "Bandwidth optimal all-reduce algorithms for
clusters of workstations", 2009), each in segments of which two are on the way. gct's collectives
are a pipeline of slices, as csrc/torch/engine.cpp has it: the first takes all its stages, each
further one as long as what is busiest. All assumptions: docs/planning.md.
``benchmarks/plan_check.py`` compares predictions with measurements.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from gct._plan_speed import Curve, Speed, calibrate

__all__ = [
    "Cluster",
    "Curve",
    "Link",
    "Prediction",
    "Speed",
    "Step",
    "calibrate",
    "predict",
    "predict_all",
]

SCHEMES = ("fp32", "bf16", "powersgd", "gct", "gct-hierarchical")

# csrc/torch/layout.cpp, job.cpp and engine.cpp; a test compares bytes with the real engine's.
_SLICE_NUMEL = 512 * 1024
_MAX_SLICE_NUMEL = 1024 * 1024
_FEW_SLICES = 4
_LEAST_CHUNK_NUMEL = 64 * 1024
_LATENCY_BYTES = 16 * 1024
_FIRST_EXCHANGES = 3
_SECOND_EXCHANGES = 2

# torch's Gloo backend carries out two collectives at a time.
_GLOO_SEGMENT = 1 << 20  # bytes, at most: gloo/allreduce.h, kMaxSegmentSize
_GLOO_THREADS = 2


@dataclass(frozen=True)
class Link:
    """A full-duplex link: of a host into the network, or of a rank to the others on its host.

    Args:
        bits_per_second: nominal rate, each way.
        latency: seconds from one rank's call to the other's receipt of an empty message.
        message: seconds of the sender's for each further message of an exchange with many.
        efficiency: payload's share of the rate. TCP over Ethernet with frames of 1,500 bytes:
            1448 of 1538 bytes.
    """

    bits_per_second: float
    latency: float = 50e-6
    message: float = 10e-6
    efficiency: float = 0.94

    def seconds(self, payload_bytes: float) -> float:
        """To send so many bytes."""
        return 8 * payload_bytes / (self.bits_per_second * self.efficiency)

    def exchange_latency(self, messages: int) -> float:
        """Of so many messages that leave one after the other and don't wait for answers."""
        return self.latency + self.message * (messages - 1) if messages else 0.0


@dataclass(frozen=True)
class Cluster:
    """Ranks, in order of their hosts.

    Args:
        ranks: all of them.
        link: of each host.
        local_ranks: on each host; divides ``ranks``.
        local_link: of each rank to those on its host.
        cores: processor cores of each rank for the codec; below 1 where ranks share one.

    Raises:
        ValueError: numbers below 1, cores not above 0, or hosts that are not full.
    """

    ranks: int
    link: Link
    local_ranks: int = 1
    local_link: Link = field(default_factory=lambda: Link(100e9, latency=10e-6, message=1e-6))
    cores: float = 1.0

    def __post_init__(self) -> None:
        if self.ranks < 1 or self.local_ranks < 1 or self.ranks % self.local_ranks:
            raise ValueError(
                f"expected full hosts, but {self.ranks} ranks are no multiple of "
                f"{self.local_ranks} local ranks"
            )
        if not self.cores > 0:
            raise ValueError(f"cores must be above 0, got {self.cores}")

    @property
    def hosts(self) -> int:
        return self.ranks // self.local_ranks


@dataclass(frozen=True)
class Step:
    """What is exchanged at each training step, and what it may hide behind.

    Args:
        numel: gradient elements, float32.
        seconds: of a step without any communication.
        backward: share of the step in which gradients become ready, evenly.
        bucket_numel: elements of a DDP bucket; the default is DDP's, 25 MiB of float32.
    """

    numel: int
    seconds: float = 0.0
    backward: float = 2 / 3
    bucket_numel: int = 25 * (1 << 20) // 4

    @property
    def buckets(self) -> int:
        return max(1, math.ceil(self.numel / self.bucket_numel))


@dataclass(frozen=True)
class Prediction:
    """One scheme on one cluster. Bytes and seconds are those of a step."""

    scheme: str
    sent_bytes: float  # by each rank
    host_bytes: float  # that leave each host
    seconds: float  # of the communication alone, encoding and decoding included
    exposed_seconds: float  # after the end of backward
    step_seconds: float
    limit: str  # where most of a bucket's time goes: wire, latency, encode, decode, compute


def predict_all(
    cluster: Cluster,
    step: Step,
    speed: Speed,
    *,
    bits: float = 2.0,
    powersgd_rank: int = 4,
    matrix: tuple[int, int] = (4096, 4096),
) -> list[Prediction]:
    """Every scheme that makes sense on this cluster; see :func:`predict`."""
    split = cluster.local_ranks > 1 and cluster.hosts > 1
    return [
        predict(s, cluster, step, speed, bits=bits, powersgd_rank=powersgd_rank, matrix=matrix)
        for s in SCHEMES
        if split or s != "gct-hierarchical"
    ]


def predict(
    scheme: str,
    cluster: Cluster,
    step: Step,
    speed: Speed,
    *,
    bits: float = 2.0,
    powersgd_rank: int = 4,
    matrix: tuple[int, int] = (4096, 4096),
) -> Prediction:
    """Bytes and times of one scheme.

    Args:
        scheme: ``"fp32"``, ``"bf16"``: a ring all-reduce, as DDP does it or with torch's
            bf16_compress_hook; ``"powersgd"``: torch's powerSGD_hook (arXiv 1905.13727);
            ``"gct"``: compressed among all ranks; ``"gct-hierarchical"``: ranks of a host
            reduce-scatter in float32, each takes its shard across hosts compressed, and an
            all-gather on the host.
        cluster, step: where and what.
        speed: from :func:`calibrate`, or given rates.
        bits: of gct, mean bits per element on the wire.
        powersgd_rank, matrix: PowerSGD's rank, and rows and columns of a typical parameter.

    Raises:
        ValueError: an unknown scheme.
    """
    numel = step.numel / step.buckets
    if scheme == "fp32":
        flow = _ring(cluster, 4 * numel, speed)
    elif scheme == "bf16":
        flow = _after(numel / speed.cast_rate / cluster.cores, _ring(cluster, 2 * numel, speed))
    elif scheme == "powersgd":
        compute = speed.powersgd_seconds(numel) / cluster.cores
        flow = _after(compute, _low_rank(cluster, numel, powersgd_rank, matrix, speed))
    elif scheme == "gct":
        flow = _flat(cluster, numel, bits, speed)
    elif scheme == "gct-hierarchical":
        flow = _hierarchical(cluster, numel, bits, speed)
    else:
        raise ValueError(f"scheme must be one of {', '.join(SCHEMES)}, got {scheme!r}")
    return _stream(scheme, flow, step)


@dataclass(frozen=True)
class _Flow:
    """How one bucket goes through."""

    sent_bytes: float
    host_bytes: float
    seconds: float
    interval: float  # seconds from one bucket to the next in a steady stream
    parts: dict[str, float]  # seconds by what they are spent on


def _stream(scheme: str, flow: _Flow, step: Step) -> Prediction:
    """A step's buckets one after the other, each ready at its time in the backward pass.

    Bucket k of K is ready at k/K of backward. The last one enters at the end of backward, or later
    if those before it come more quickly than they are reduced.
    """
    buckets, backward = step.buckets, step.seconds * step.backward
    behind = (buckets - 1) * max(0.0, flow.interval - backward / buckets)
    exposed = flow.seconds + behind
    return Prediction(
        scheme=scheme,
        sent_bytes=buckets * flow.sent_bytes,
        host_bytes=buckets * flow.host_bytes,
        seconds=flow.seconds + (buckets - 1) * flow.interval,
        exposed_seconds=exposed,
        step_seconds=step.seconds + exposed,
        limit=max(flow.parts, key=lambda part: flow.parts[part]),
    )


def _ring(cluster: Cluster, payload_bytes: float, speed: Speed) -> _Flow:
    """Gloo's all-reduce; each host's link carries one edge of the ring."""
    world = cluster.ranks
    sent = 2 * (world - 1) / world * payload_bytes
    across = sent if cluster.hosts > 1 else 0.0
    inside = sent if cluster.local_ranks > 1 else 0.0
    moving = speed.transport_seconds(0, sent) / cluster.cores
    wire = max(cluster.link.seconds(across), cluster.local_link.seconds(inside), moving)
    slowest = cluster.link if cluster.hosts > 1 else cluster.local_link
    latency = _ring_latency(2 * (world - 1), payload_bytes / world, wire, slowest.latency)
    return _Flow(
        sent_bytes=sent,
        host_bytes=across,
        seconds=wire + latency,
        interval=max(wire, (wire + latency) / _GLOO_THREADS),
        parts={"wire": wire, "latency": latency},
    )


def _ring_latency(messages: int, message_bytes: float, wire: float, latency: float) -> float:
    """What the latencies of a ring's messages add to the seconds of their bytes, ``wire``.

    Gloo cuts each message into two segments or more, of at most 1 MiB, and has two on the way
    (gloo/allreduce.cc, "ring"): while one waits to be heard of, the other one's bytes move.
    """
    segments = messages * max(2, math.ceil(message_bytes / _GLOO_SEGMENT))
    return segments * max(0.0, latency - wire / segments) / 2 if segments else 0.0


def _after(compute: float, flow: _Flow) -> _Flow:
    """A collective with this rank's computing before and after it."""
    return replace(
        flow,
        seconds=flow.seconds + compute,
        interval=max(flow.interval, compute),
        parts={**flow.parts, "compute": compute},
    )


def _low_rank(
    cluster: Cluster, numel: float, rank: int, matrix: tuple[int, int], speed: Speed
) -> _Flow:
    """All-reduces of P (rows x rank) and then of Q (columns x rank) of each matrix.

    torch's hook leaves matrices alone that it would not make at least twice as small.
    """
    rows, columns = matrix
    if 2 * rank * (rows + columns) >= rows * columns:
        return _ring(cluster, 4 * numel, speed)
    matrices = numel / (rows * columns)
    p = _ring(cluster, 4 * matrices * rank * rows, speed)
    q = _ring(cluster, 4 * matrices * rank * columns, speed)
    return _Flow(
        sent_bytes=p.sent_bytes + q.sent_bytes,
        host_bytes=p.host_bytes + q.host_bytes,
        seconds=p.seconds + q.seconds,
        interval=p.interval + q.interval,
        parts={name: p.parts[name] + q.parts[name] for name in p.parts},
    )


def _flat(cluster: Cluster, numel: float, bits: float, speed: Speed) -> _Flow:
    """Compressed among all ranks. What goes to other hosts shares the host's link."""
    local, others = cluster.local_ranks, cluster.ranks - cluster.local_ranks

    def wire(message_bytes: float) -> float:
        return max(
            cluster.link.seconds(local * others * message_bytes),
            cluster.local_link.seconds((local - 1) * message_bytes),
        )

    latency = max(
        cluster.link.exchange_latency(others), cluster.local_link.exchange_latency(local - 1)
    )
    flow = _Engine(cluster.ranks, bits, speed, cluster.cores, wire, latency).flow(numel)
    share = others / max(1, cluster.ranks - 1)
    return replace(flow, host_bytes=local * share * flow.sent_bytes)


def _hierarchical(cluster: Cluster, numel: float, bits: float, speed: Speed) -> _Flow:
    """Reduce-scatter on the host, compressed all-reduce of the shards, all-gather on the host."""
    local, hosts = cluster.local_ranks, cluster.hosts
    inside = 2 * (local - 1) / local * 4 * numel
    moving = speed.transport_seconds(0, inside) / cluster.cores
    local_wire = max(cluster.local_link.seconds(inside), moving)
    around = local_wire + 2 * (local - 1) * cluster.local_link.latency

    def wire(message_bytes: float) -> float:
        return cluster.link.seconds(local * (hosts - 1) * message_bytes)

    latency = cluster.link.exchange_latency(hosts - 1)
    across = _Engine(hosts, bits, speed, cluster.cores, wire, latency).flow(numel / local)
    return _Flow(
        sent_bytes=inside + across.sent_bytes,
        host_bytes=local * across.sent_bytes,
        seconds=around + across.seconds,
        # The processor moves the host's bytes beside what else it does.
        interval=max(around, across.interval + moving),
        parts={**across.parts, "local link": around},
    )


@dataclass(frozen=True)
class _Engine:
    """gct's collective among ``world`` ranks, as csrc/torch/engine.cpp carries it out.

    Each slice is encoded by the front thread, crosses the wire, is decoded and added by the back
    thread and, in two shots, encoded again, crosses the wire again and is decoded by the tail
    thread.
    """

    world: int
    bits: float
    speed: Speed
    cores: float
    wire: Callable[[float], float]  # seconds of an exchange with messages of so many bytes
    latency: float  # of an exchange

    def flow(self, numel: float) -> _Flow:
        """The first slice takes all stages, each further one as long as what is busiest."""
        if self.world == 1:
            return _Flow(0.0, 0.0, 0.0, 0.0, {"wire": 0.0})
        usual = min(max(numel / _FEW_SLICES, _SLICE_NUMEL), _MAX_SLICE_NUMEL)
        slices = math.ceil(numel / max(usual, _LEAST_CHUNK_NUMEL * self.world))
        part = numel / slices
        shots = 1 if self._one_shot(numel) else 2
        message = self.bits / 8 * (part if shots == 1 else part / self.world)
        encode, receive, finish = self._stages(part, shots, self.cores)
        wire = self.wire(message)
        # Slices on their way wait for a free buffer of either shot.
        first = (encode + wire + self.latency + receive) / _FIRST_EXCHANGES
        second = (wire + self.latency + receive + finish) / _SECOND_EXCHANGES
        messages = shots * (self.world - 1)
        moving = self.speed.transport_seconds(messages, messages * message)
        busy = (sum(self._stages(part, shots, cores=1.0)) + moving) / self.cores
        stages = max(encode, receive, finish)
        interval = max(stages, busy, shots * wire, first, (shots - 1) * second)
        path = encode + receive + finish + shots * (wire + self.latency)
        return _Flow(
            sent_bytes=slices * messages * message,
            host_bytes=0.0,
            seconds=path + (slices - 1) * interval,
            interval=slices * interval,
            parts={
                "wire": shots * wire,
                "latency": shots * self.latency,
                "encode": encode,
                "decode": receive + finish,
            },
        )

    def _one_shot(self, numel: float) -> bool:
        """choose_algorithm of csrc/torch/job.cpp."""
        if self.world <= 2:
            return True
        more_bytes = numel * self.bits / 8 * (self.world - 1) * (1 - 2 / self.world)
        return more_bytes <= _LATENCY_BYTES

    def _stages(self, part: float, shots: int, cores: float) -> tuple[float, float, float]:
        """Seconds of a slice in the front, the back and the tail thread."""
        numel = part if shots == 1 else part / self.world
        encode = self.speed.encode_seconds(numel, cores)
        decode = self.speed.decode_seconds(numel, cores)
        others = self.world - 1
        if shots == 1:
            return encode, self.world * decode, 0.0
        return others * encode, others * decode + encode, self.world * decode
