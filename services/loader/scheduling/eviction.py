"""Plans which models to evict so that another one fits: a pure function, without clock or I/O.

A plan never evicts for nothing: it names victims only if the newcomer fits once they are gone, and none
of them is superfluous. Models that are starting, loading, busy or pinned are not victims; memory of models
that are already being unloaded is used before others are evicted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum, auto

from services.common.human_size import size_in_words

SMALL = 256 * 1024**2
"""Bytes: smaller models count as this large in `worth_evicting`."""

QUICK = 1.0
"""Seconds: shorter loads are no reason to keep a model; their differences are mostly chance."""


@dataclass(frozen=True, slots=True)
class Occupant:
    """A model that holds memory: ready, starting or being unloaded. Times are seconds."""

    name: str
    settled: bool = True
    """It is ready: neither starting nor being unloaded."""
    leaving: bool = False
    busy: bool = False
    """Calls hold it or wait for it."""
    pinned: bool = False
    counts: bool = True
    """It counts towards the limit on active models; external backends do not."""
    groups: frozenset[str] = frozenset()
    memory: Mapping[str, int] = field(default_factory=dict)
    """Bytes by device: reserved, or measured."""
    idle: float = 0.0
    """Since its last call ended, or since it became ready."""
    residence: float = 0.0
    """Since it became ready."""
    load_seconds: float = 0.0
    """How long its load took."""
    came_back: bool = False
    """It was evicted, and had to be loaded again soon afterwards."""
    in_demand: bool = False
    """Its last call ended only a moment ago, so another is likely to follow."""

    @property
    def size(self) -> int:
        """Its memory on all devices, in bytes."""
        return sum(self.memory.values())


@dataclass(frozen=True, slots=True)
class Newcomer:
    """A model that needs memory and a slot."""

    name: str
    counts: bool = True
    groups: frozenset[str] = frozenset()
    memory: Mapping[str, int] = field(default_factory=dict)
    waited: float = 0.0
    """Seconds that it has been waiting."""


@dataclass(frozen=True, slots=True)
class Limits:
    """The limits and the policy for evictions."""

    active: int = 0
    """Models; 0 means no limit."""
    evict_busy: bool = False
    """Models in use may be evicted, and their calls cut, if evicting idle ones is not enough."""
    largest_first: bool = False
    starvation_bound: float = 10.0
    """Seconds after which models in demand are no longer spared for a waiting newcomer."""


class EvictionMode(Enum):
    """How a victim is evicted."""

    IDLE = auto()
    """No call uses it."""
    DRAIN = auto()
    """Its running calls end first, and new ones wait."""
    FORCE = auto()
    """Its calls are cut."""


@dataclass(frozen=True, slots=True)
class Victim:
    """A model to evict."""

    name: str
    way: EvictionMode
    freed: int
    idle: float
    why: str


@dataclass(frozen=True, slots=True)
class Blocker:
    """A model whose memory or slot is needed, but which cannot be evicted now."""

    name: str
    why: str
    temporary: bool


@dataclass(frozen=True, slots=True)
class Plan:
    """The evictions that make a newcomer fit, or the models that prevent it."""

    fits: bool = False
    """It fits now, without evictions."""
    victims: tuple[Victim, ...] = ()
    """Models to evict: once they are gone, it fits."""
    pending: tuple[str, ...] = ()
    """Models being unloaded whose memory it needs."""
    blockers: tuple[Blocker, ...] = ()
    possible: bool = True
    """It can fit at all, once the models that cannot be evicted now are gone."""
    lacking: str = ""
    """The resources that are short, for people."""

    @property
    def blocked(self) -> bool:
        """Whether no eviction helps, and the unloads in progress are not enough."""
        return not self.fits and not self.victims and (bool(self.blockers) or not self.pending)


class BlockedRequests:
    """Newcomers whose plans are blocked: any newcomer with at least the same needs is blocked too."""

    def __init__(self) -> None:
        """Valid as long as no occupant leaves between the calls of `add` and `covers`."""
        self._needs: dict[tuple[bool, frozenset[str], bool], list[Mapping[str, int]]] = {}

    def add(self, newcomer: Newcomer, starvation_bound: float) -> None:
        """Add a newcomer whose plan is blocked."""
        self._needs.setdefault(_kind(newcomer, starvation_bound), []).append(newcomer.memory)

    def covers(self, newcomer: Newcomer, starvation_bound: float) -> bool:
        """Whether a blocked newcomer of the same kind needs no more memory on any device."""
        return any(
            all(newcomer.memory.get(device, -1) >= size for device, size in lesser.items())
            for lesser in self._needs.get(_kind(newcomer, starvation_bound), ())
        )


def _kind(newcomer: Newcomer, starvation_bound: float) -> tuple[bool, frozenset[str], bool]:
    return newcomer.counts, newcomer.groups, newcomer.waited >= starvation_bound


def plan(
    newcomer: Newcomer, occupants: Iterable[Occupant], limits: Limits, free: Mapping[str, int]
) -> Plan:
    """Return the plan for a newcomer. `free`: bytes by device that may be reserved now."""
    others = [occupant for occupant in occupants if occupant.name != newcomer.name]
    need = _Need(newcomer, others, limits, free)
    if need.met_without(()):
        return Plan(fits=True)
    lacking = need.lacking()
    leaving = [occupant for occupant in others if occupant.leaving]
    pending = tuple(occupant.name for occupant in leaving)
    if need.met_without(leaving):
        return Plan(pending=pending, lacking=lacking)
    impatient = newcomer.waited >= limits.starvation_bound
    idle: list[Occupant] = []
    drained: list[Occupant] = []
    forced: list[Occupant] = []
    for occupant in others:
        if occupant.leaving or not occupant.settled or occupant.pinned:
            continue
        if occupant.busy and limits.evict_busy:
            forced.append(occupant)
        elif _protected(occupant, limits):
            continue
        elif occupant.busy:
            drained.append(occupant)
        else:
            idle.append(occupant)
    pools: list[tuple[EvictionMode, list[Occupant]]] = [(EvictionMode.IDLE, idle)]
    if forced:
        pools.append((EvictionMode.FORCE, forced))
    if impatient and drained:
        pools.append((EvictionMode.DRAIN, drained))
    chosen = _choose(need, leaving, pools, limits)
    if chosen:
        victims = tuple(_victim(occupant, way) for occupant, way in chosen)
        return Plan(victims=victims, pending=pending, lacking=lacking)
    staying = need.minds(occupant for occupant in others if not occupant.leaving)
    return Plan(
        pending=pending,
        blockers=tuple(_blocker(occupant, limits) for occupant in staying),
        possible=need.met_without([occupant for occupant in others if not occupant.pinned]),
        lacking=lacking,
    )


def _protected(occupant: Occupant, limits: Limits) -> bool:
    """Whether the model was loaded so recently that evicting it now would be thrashing.

    When models evict each other repeatedly, each one serves for at least as long as its load took while
    calls for it keep coming, so about half of the time goes into loading. No newcomer waits longer for
    that than the starvation bound. A model that was not evicted before is not protected: without
    contention no newcomer has to wait.
    """
    enough = min(occupant.load_seconds, limits.starvation_bound)
    wanted = occupant.busy or occupant.in_demand
    return occupant.came_back and wanted and occupant.residence < enough


class _Need:
    """Compares a newcomer's needs with the resources free without some of the other models."""

    def __init__(
        self,
        newcomer: Newcomer,
        others: Sequence[Occupant],
        limits: Limits,
        free: Mapping[str, int],
    ) -> None:
        self._newcomer = newcomer
        self._others = others
        self._limits = limits
        self._free = free

    def conflicts(self, occupant: Occupant) -> bool:
        return bool(occupant.groups & self._newcomer.groups)

    def met_without(self, gone: Iterable[Occupant]) -> bool:
        away = {occupant.name for occupant in gone}
        there = [occupant for occupant in self._others if occupant.name not in away]
        if any(map(self.conflicts, there)) or self._places_short(there) > 0:
            return False
        return not any(short > 0 for short in self._bytes_short(away).values())

    def minds(self, occupants: Iterable[Occupant]) -> list[Occupant]:
        """Return the occupants that hold resources which the newcomer lacks."""
        places_short = self._places_short(self._others) > 0
        devices = {device for device, short in self._bytes_short(set()).items() if short > 0}
        return [
            occupant
            for occupant in occupants
            if self.conflicts(occupant)
            or (occupant.counts and places_short)
            or any(size and device in devices for device, size in occupant.memory.items())
        ]

    def helps(self, occupant: Occupant, gone: Iterable[Occupant]) -> bool:
        """Whether evicting this occupant still helps when the others in `gone` are gone."""
        away = {other.name for other in gone}
        there = [other for other in self._others if other.name not in away]
        if self.conflicts(occupant):
            return True
        if occupant.counts and self._places_short(there) > 0:
            return True
        short = self._bytes_short(away)
        return any(short.get(device, 0) > 0 and size for device, size in occupant.memory.items())

    def lacking(self) -> str:
        """Return the resources that are short, for people."""
        parts = []
        groups = sorted(
            {
                group
                for occupant in self._others
                for group in occupant.groups & self._newcomer.groups
            }
        )
        if groups:
            parts.append(f"a model of the same concurrency group is there ({', '.join(groups)})")
        if self._places_short(self._others) > 0:
            parts.append(f"all {self._limits.active} places for active models are taken")
        for device, short in sorted(self._bytes_short(set()).items()):
            if short > 0:
                need = size_in_words(self._newcomer.memory[device])
                left = size_in_words(max(self._free[device], 0))
                parts.append(f"it needs {need} of {device}, and {left} are free")
        return "; ".join(parts)

    def _places_short(self, there: Iterable[Occupant]) -> int:
        if not self._limits.active:
            return 0
        taken = sum(occupant.counts for occupant in there)
        return taken + self._newcomer.counts - self._limits.active

    def _bytes_short(self, away: set[str]) -> dict[str, int]:
        back = dict.fromkeys(self._newcomer.memory, 0)
        for occupant in self._others:
            if occupant.name in away:
                for device, size in occupant.memory.items():
                    if device in back:
                        back[device] += size
        return {
            device: size - self._free[device] - back[device]
            for device, size in self._newcomer.memory.items()
            if device in self._free
        }


def _choose(
    need: _Need,
    leaving: list[Occupant],
    pools: Sequence[tuple[EvictionMode, list[Occupant]]],
    limits: Limits,
) -> list[tuple[Occupant, EvictionMode]]:
    """Return the models to evict, none of them superfluous; empty if the need cannot be met."""
    chosen: list[tuple[Occupant, EvictionMode]] = []

    def gone(without: Occupant | None = None) -> list[Occupant]:
        return leaving + [occupant for occupant, _ in chosen if occupant is not without]

    # Waiting newcomers are planned for repeatedly, mostly without a result, so check first.
    if not need.met_without([*leaving, *(occupant for _, pool in pools for occupant in pool)]):
        return []
    for way, pool in pools:
        for occupant in sorted(pool, key=_order(limits)):
            if not need.met_without(gone()) and need.helps(occupant, gone()):
                chosen.append((occupant, way))  # noqa: PERF401 - each choice affects the next check
    if not need.met_without(gone()):
        return []
    # A large model chosen later may have made earlier choices unnecessary.
    for occupant, way in reversed(list(chosen)):
        if need.met_without(gone(occupant)):
            chosen.remove((occupant, way))
    return chosen


def _order(limits: Limits) -> Callable[[Occupant], tuple[float, float, str]]:
    if limits.largest_first:
        return lambda occupant: (-occupant.size, -occupant.idle, occupant.name)
    return lambda occupant: (-worth_evicting(occupant), -occupant.idle, occupant.name)


def worth_evicting(occupant: Occupant) -> float:
    """Return idle time x size / load time: among equals, the least recently used is evicted first."""
    size = max(occupant.size, SMALL) / SMALL
    return occupant.idle * size / max(occupant.load_seconds, QUICK)


def first_to_go(occupants: Iterable[Occupant], limits: Limits, device: str = "") -> Occupant | None:
    """Return the model least worth keeping with memory on the device, idle ones first."""
    idle = [
        occupant
        for occupant in occupants
        if occupant.settled
        and not occupant.leaving
        and not occupant.pinned
        and (limits.evict_busy or not occupant.busy)
        and (not device or occupant.memory.get(device))
    ]
    order = _order(limits)
    return min(idle, key=lambda occupant: (occupant.busy, *order(occupant)), default=None)


def _victim(occupant: Occupant, way: EvictionMode) -> Victim:
    how = {
        EvictionMode.IDLE: f"idle for {occupant.idle:.0f} s",
        EvictionMode.DRAIN: "in use; its running calls end first",
        EvictionMode.FORCE: "in use; its calls are cut, as force_eviction_when_busy is set",
    }[way]
    size = f", {size_in_words(occupant.size)}" if occupant.size else ""
    why = f"{how}{size}, took {occupant.load_seconds:.1f} s to load"
    return Victim(occupant.name, way, occupant.size, occupant.idle, why)


def _blocker(occupant: Occupant, limits: Limits) -> Blocker:
    if occupant.pinned:
        return Blocker(occupant.name, "it is pinned", temporary=False)
    if not occupant.settled:
        return Blocker(occupant.name, "it is being loaded", temporary=True)
    if _protected(occupant, limits):
        why = f"it came back {occupant.residence:.1f} s ago and is in demand"
        return Blocker(occupant.name, why, temporary=True)
    if occupant.busy:
        return Blocker(occupant.name, "it is in use", temporary=True)
    return Blocker(occupant.name, "evicting it would not be enough", temporary=True)
