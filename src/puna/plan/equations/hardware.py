"""Accelerators by name: datasheet peaks, fabrics, measured rates, power and prices, with sources.

The figures are in catalogue.toml next to this file. Any other accelerator takes six lines of TOML (`OWN`);
`evidence.local_device` describes the one in this machine.
"""

import difflib
import re
import tomllib
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from puna.core.errors import PunaError, nearest
from puna.core.recipe import Config, check, read_toml
from puna.core.units import parse_count

Generation = Literal["ampere", "hopper", "ada", "blackwell", "blackwell-rtx", "cdna3", "cdna4", "cpu"]
Precision = Literal["fp32", "bf16", "fp16", "fp8", "mxfp8", "nvfp4"]

# Six lines that describe another accelerator, named after its file. Any other field may be added.
OWN = """bf16_tflops = 989        # dense peak, TFLOP/s
memory_gb = 80           # 10^9 bytes
memory_gb_per_s = 3350
link_gb_per_s = 450      # NVLink or the like, one direction; PCIe where there is none
nic_gbit_per_s = 400     # network, for each accelerator
watts = 700"""


class Accelerator(Config):
    """One kind of accelerator and the host it usually sits in. Bandwidths are one direction; GB are 10^9 bytes."""

    name: str = Field(description="its name in the catalogue")
    generation: Generation = Field("hopper", description="generation whose fitted efficiencies apply")
    bf16_tflops: float = Field(gt=0, description="dense bf16 peak, TFLOP/s")
    fp32_tflops: float | None = Field(None, gt=0, description="fp32 peak, TFLOP/s; for CPUs, which train in fp32")
    fp8_tflops: float | None = Field(None, gt=0, description="dense fp8 peak, TFLOP/s; none: not supported")
    fp4_tflops: float | None = Field(None, gt=0, description="dense fp4 peak, TFLOP/s; none: not supported")
    memory_gb: float = Field(gt=0, description="device memory, 10^9 bytes")
    usable_gib: float | None = Field(None, gt=0, description="memory available to programs, GiB, where it was measured")
    memory_gb_per_s: float = Field(gt=0, description="device memory bandwidth, GB/s")
    link_gb_per_s: float = Field(gt=0, description="scale-up fabric per accelerator, GB/s; PCIe where there is none")
    link_pair_gb_per_s: float | None = Field(
        None, gt=0, description="bandwidth between two accelerators on a mesh without a switch, GB/s"
    )
    link_domain: int = Field(8, gt=0, description="accelerators in one scale-up domain")
    node_size: int = Field(8, gt=0, description="accelerators in one host")
    nic_gbit_per_s: float = Field(gt=0, description="scale-out network per accelerator, Gbit/s")
    watts: float = Field(gt=0, description="power of one at full load (TDP), W")
    node_watts_per_accelerator: float | None = Field(
        None, gt=0, description="maximum of the whole host, per accelerator, W"
    )
    matmul_tflops: float | None = Field(None, gt=0, description="best measured bf16 product, TFLOP/s")
    matmul_fp8_tflops: float | None = Field(None, gt=0, description="best measured fp8 product, TFLOP/s")
    matmul_fp32_tflops: float | None = Field(None, gt=0, description="best measured fp32 product, TFLOP/s")
    attention_tflops: float | None = Field(None, gt=0, description="measured attention, forward, TFLOP/s")
    stream_gb_per_s: float | None = Field(None, gt=0, description="measured device memory bandwidth, GB/s")
    allreduce_gb_per_s: float | None = Field(None, gt=0, description="measured bus bandwidth within a host, GB/s")
    allgather_gb_per_s: float | None = Field(None, gt=0, description="measured bus bandwidth within a host, GB/s")
    price_usd: tuple[float, float] | None = Field(None, description="the accelerator alone, low and high, USD")
    all_in_usd: tuple[float, float] | None = Field(None, description="with host, network, building, low and high, USD")
    rent_usd_per_hour: tuple[float, float, float] | None = Field(None, description="low, default, high, USD an hour")
    sources: dict[str, str] = Field(default_factory=dict, description="source and date of each field")

    @property
    def usable_bytes(self) -> float:
        """Device memory available to a program, bytes.

        Vendors count binary gigabytes, of which about one percent is reserved (torch reports 79.2 GiB on an 80 GB H100
        and 178.4 on a 180 GB B200), unless `usable_gib` says otherwise.
        """
        return (self.usable_gib or 0.99 * self.memory_gb) * 2**30

    def peak_tflops(self, precision: str) -> float:
        """Dense peak of `precision`, TFLOP/s. Raises PunaError where the accelerator does not support it."""
        peaks = {
            "fp32": self.fp32_tflops or self.bf16_tflops / 2,  # TF32, on every tensor core so far half of bf16
            "bf16": self.bf16_tflops,
            "fp16": self.bf16_tflops,
            "fp8": self.fp8_tflops,
            "mxfp8": self.fp8_tflops if self.generation in ("blackwell", "blackwell-rtx", "cdna4") else None,
            "nvfp4": self.fp4_tflops,
        }
        if precision not in peaks:
            raise PunaError(f"'{precision}' is not a precision.", nearest(precision, peaks))
        peak = peaks[precision]
        if peak is None:
            able = ", ".join(name for name, value in peaks.items() if value is not None)
            raise PunaError(f"{self.name} has no products in {precision}.", f"It can do {able}.")
        return peak

    def link_gb_per_s_of(self, ranks: int) -> float:
        """Scale-up bandwidth, GB/s, of each of `ranks` communicating ranks: on a mesh fewer links count."""
        if self.link_pair_gb_per_s is None:
            return self.link_gb_per_s
        return min(self.link_gb_per_s, self.link_pair_gb_per_s * max(1, ranks - 1))


class Collective(Config):
    """One measured collective: bus bandwidth, GB/s, of `ranks` accelerators in `nodes` hosts."""

    accelerator: str = Field(description="name in the catalogue")
    kind: Literal["allreduce", "allgather", "reducescatter", "sendrecv"] = Field(description="which collective")
    algorithm: Literal["nvls", "ring"] | None = Field(None, description="NCCL's algorithm, where known")
    ranks: int = Field(gt=1, description="accelerators in the group")
    nodes: int = Field(gt=0, description="hosts they sat in")
    message_bytes: int | None = Field(None, gt=0, description="message size; none: the largest measured")
    gb_per_s: float = Field(gt=0, description="bus bandwidth, GB/s")


class AcceleratorGroup(Config):
    """A number of accelerators of one kind."""

    count: int = Field(gt=0, description="accelerators")
    accelerator: Accelerator = Field(description="their kind")

    @property
    def nodes(self) -> int:
        """Hosts they need; the last may be partly used."""
        return -(-self.count // self.accelerator.node_size)


class Fleet(Config):
    """Accelerators of one or several kinds."""

    groups: tuple[AcceleratorGroup, ...] = Field(min_length=1, description="one for each kind")

    @property
    def count(self) -> int:
        """Accelerators of all kinds."""
        return sum(group.count for group in self.groups)

    @property
    def nodes(self) -> int:
        """Hosts of all kinds."""
        return sum(group.nodes for group in self.groups)

    def __str__(self) -> str:
        return "+".join(f"{group.count}x{group.accelerator.name}" for group in self.groups)


# -- the catalogue ---------------------------------------------------------------------------------------------------


def catalogue() -> dict[str, Accelerator]:
    """All accelerators of the catalogue by name, each figure with its source in `sources`."""
    return dict(_catalogue()[0])


def aliases() -> dict[str, str]:
    """Other names in use, each with the catalogue's."""
    return dict(_catalogue()[1])


def collectives() -> tuple[Collective, ...]:
    """Collectives as measured on the catalogue's accelerators."""
    return _catalogue()[2]


def find_accelerator(name: str) -> Accelerator:
    """The accelerator called `name`: the catalogue's name, an alias, or the path of a TOML file that describes one.

    Raises PunaError for an unknown name, with the nearest names and the six lines that describe another accelerator.
    """
    name = name.strip()
    if name.lower().endswith(".toml"):
        return _own(Path(name))
    known, others, _ = _catalogue()
    key = re.sub(r"[\s_]+", "-", name.lower())
    key = others.get(key, key)
    if key in known:
        return known[key]
    close = difflib.get_close_matches(key, [*known, *others], n=3, cutoff=0.45) or list(known)
    raise PunaError(
        f"'{name}' is not in the catalogue of accelerators.",
        f"Nearest: {', '.join(close)}. Or describe your own in a file such as my-gpu.toml and name that:\n{OWN}",
    )


def parse_fleet(text: str) -> Fleet:
    """Read "16384xh100" or "8xh200+64xa100" (also × and 16_384; a kind may be the path of a TOML file).

    Raises PunaError for an empty fleet, a count below one, and anything but counts and kinds.
    """
    return Fleet(groups=tuple(_group(part.strip(), text) for part in text.split("+")))


def _group(part: str, whole: str) -> AcceleratorGroup:
    match = re.fullmatch(r"([+-]?[\w.]*?)\s*[x×*]\s*([A-Za-z0-9./~].*)", part)
    if not match or not match[1]:
        raise PunaError(f"'{whole}' is not a fleet.", "Write it like 8xh100, 16384xh100 or 8xh200+64xa100.")
    digits, name = match[1], match[2]
    if digits.startswith("-") or ("." in digits and digits[-1].isdigit()):
        raise PunaError(
            f"'{whole}': '{digits}' accelerators is not a valid count.", "Give a whole number of at least 1."
        )
    count = parse_count(digits)
    if count < 1:
        raise PunaError(f"'{whole}': a fleet needs at least one accelerator.", "Write it like 8xh100.")
    return AcceleratorGroup(count=count, accelerator=find_accelerator(name))


def _own(path: Path) -> Accelerator:
    tree = {"name": path.stem, **read_toml(path)}
    accelerator = check(Accelerator, tree, str(path))
    told = dict.fromkeys(accelerator.model_fields_set - {"name", "sources"}, str(path))
    return accelerator.model_copy(update={"sources": told | accelerator.sources})


@lru_cache(maxsize=1)
def _catalogue() -> tuple[dict[str, Accelerator], dict[str, str], tuple[Collective, ...]]:
    tree = tomllib.loads(Path(__file__).with_name("catalogue.toml").read_text(encoding="utf-8"))
    legend: dict[str, str] = tree["sources"]
    known = {
        name: Accelerator.model_validate({**fields, "name": name, "sources": _sourced(fields, legend)})
        for name, fields in tree["accelerators"].items()
    }
    return known, tree["aliases"], tuple(Collective.model_validate(row) for row in tree["collectives"])


def _sourced(fields: dict[str, Any], legend: dict[str, str]) -> dict[str, str]:
    """One source for each figure: the field's own, or the accelerator's default, with legend keys expanded."""
    told = fields["sources"]
    figures = [name for name in fields if name not in ("sources", "generation")]
    named = {name: told.get(name, told["default"]) for name in figures}
    return {name: legend.get(source, source) for name, source in named.items()}
