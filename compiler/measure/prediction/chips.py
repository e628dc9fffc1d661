"""What GPUs are limited by: public figures, and figures that people measured and published.

Sources: NVIDIA's data sheets and architecture papers (multiprocessors, clocks, memory, caches, peak
rates), the arithmetic throughput table of the CUDA programming guide (lanes), and published
microbenchmarks of Turing, Ampere and Hopper (latencies, rates of shared memory and second-level
cache). Whoever measures better ones changes them here.
"""

from dataclasses import dataclass

from intformer.errors import IntformerError


@dataclass(frozen=True)
class Latency:
    """Clocks from the issue of an instruction to the issue of one that needs its result.

    alu     integer work; address and predicate arithmetic
    imad    32-bit multiplication
    matrix  one tensor-core instruction
    shared  load from shared memory
    shuffle between the lanes of a warp
    cache   load that the second-level cache has
    memory  load that it does not have
    """

    alu: int
    imad: int
    matrix: int
    shared: int
    shuffle: int
    cache: int
    memory: int


@dataclass(frozen=True)
class Energy:
    """What work costs, for chips whose power cap binds. Estimates, not data-sheet figures.

    idle         watts that flow whatever is done
    mac          picojoules of one int8 multiplication and addition on tensor cores
    instruction  picojoules of any other instruction, for each of 32 threads
    dram         picojoules of one byte from or to memory
    """

    idle: float
    mac: float
    instruction: float
    dram: float


@dataclass(frozen=True)
class Chip:
    """One GPU.

    capability  newest code it runs, (major, minor)
    sms         streaming multiprocessors (SM), each of four parts with a scheduler of its own
    ghz         boost clock
    watts       power cap
    dram        GB/s of memory, of which kernels reach `dram_share`
    l2          bytes of second-level cache, and its GB/s at the boost clock
    macs        int8 multiplications and additions of an SM's tensor cores in a clock
    lanes       32-bit integer operations of an SM in a clock; as many multiplications
    shared      bytes of an SM's first-level cache and shared memory in a clock
    room        of an SM: registers, bytes of shared memory, threads, blocks
    gap         microseconds from the end of a kernel to the start of the next in a stream
    """

    title: str
    capability: tuple[int, int]
    sms: int
    ghz: float
    watts: float
    dram: float
    l2: int
    l2_rate: float
    macs: int
    lanes: int
    shared: int
    room: tuple[int, int, int, int]
    latency: Latency
    dram_share: float = 0.8
    gap: float = 1.5
    energy: Energy | None = None

    @property
    def target(self) -> str:
        """Name of the target that compiles for it."""
        major, minor = self.capability
        return "t4" if (major, minor) == (7, 5) else f"cuda:sm_{major}{minor}"


CHIPS = {
    "t4": Chip(
        title="Tesla T4",
        capability=(7, 5),
        sms=40,
        ghz=1.59,
        watts=70,
        dram=320,
        l2=4 << 20,
        l2_rate=1270,
        macs=1024,  # 130 TOP/s
        lanes=64,
        shared=64,
        room=(65536, 64 << 10, 1024, 16),
        latency=Latency(4, 5, 11, 23, 22, 220, 480),
        gap=2.0,
        # a multiplication on tensor cores and an instruction as NVIDIA's research gives them for
        # this process; 8.1 TFLOP/s of FP32 would take twice the cap, as is seen
        energy=Energy(idle=15, mac=0.36, instruction=30, dram=60),
    ),
    "a100": Chip(
        title="A100 80 GB SXM",
        capability=(8, 0),
        sms=108,
        ghz=1.41,
        watts=400,
        dram=2039,
        l2=40 << 20,
        l2_rate=4500,
        macs=2048,  # 624 TOP/s
        lanes=64,
        shared=128,
        room=(65536, 164 << 10, 2048, 32),
        latency=Latency(4, 4, 26, 25, 23, 220, 480),
    ),
    "h100": Chip(
        title="H100 SXM",
        capability=(9, 0),
        sms=132,
        ghz=1.83,
        watts=700,
        dram=3350,
        l2=50 << 20,
        l2_rate=5500,
        macs=2560,  # mma.sync reaches some 62 % of the 1979 TOP/s of wgmma
        lanes=64,
        shared=128,
        room=(65536, 228 << 10, 2048, 32),
        latency=Latency(4, 4, 32, 29, 24, 260, 560),
    ),
    "h200": Chip(
        title="H200 SXM",
        capability=(9, 0),
        sms=132,
        ghz=1.83,
        watts=700,
        dram=4800,
        l2=50 << 20,
        l2_rate=5500,
        macs=2560,
        lanes=64,
        shared=128,
        room=(65536, 228 << 10, 2048, 32),
        latency=Latency(4, 4, 32, 29, 24, 260, 560),
    ),
}


def get(name: str) -> Chip:
    """Return the chip called `name`; IntformerError with the known ones otherwise."""
    if name not in CHIPS:
        raise IntformerError(
            f"chip {name!r} is unknown", where="--predict", hint=f"known: {', '.join(CHIPS)}"
        )
    return CHIPS[name]
