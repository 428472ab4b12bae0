"""Names that stand for several backends: LocalAI's aliases and "meta backends". Pure.

Several builds of one engine share an alias, such as `llama-cpp`. For each machine one is chosen among
those that can run there: first the one that the installer chose, if it recorded that; then by LocalAI's
order of preference for the machine's capability; of equal ones the build for exactly that version of
CUDA, then one for no version in particular, releases before development builds, then the folders' order, then the name. Where no name fits
the order of preference, a build that needs nothing special comes first.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from services.loader.devices.capability import FORCE

from .backend import Backend, Source
from .names import base_name, is_development, preference, unmet

_LAST = 99
"""After every place in an order of preference."""


@dataclass(frozen=True, slots=True)
class Resolved:
    """All backends, each under one name, and the other names that lead to them."""

    backends: Mapping[str, Backend]
    """In the order of their sources; a name that stands for another comes just before that one."""
    aliases: Mapping[str, str]
    """The names of folders, where their backends are called otherwise."""

    def get(self, name: str) -> Backend | None:
        """Return the program, or the address, that a name leads to; unusable or not."""
        found = self.backends.get(name) or self.backends.get(self.aliases.get(name, ""))
        return self.backends[found.chosen] if found and found.chosen else found


def resolve(found: Iterable[Backend], capability: str) -> Resolved:
    """Return what the names mean, given all backends in the order in which their sources count."""
    programs: dict[str, Backend] = {}
    metas: dict[str, Backend] = {}
    for item in found:
        if not item.stands_for:
            programs.setdefault(item.name, _suited(item, capability))
        elif item.name not in programs:
            metas.setdefault(item.name, item)
    groups = [item.group for item in programs.values() if item.group]
    stand_ins: dict[str, Backend] = {}
    for name in dict.fromkeys((*metas, *groups)):
        if name in programs and programs[name].source is Source.EXTERNAL:
            continue  # it was named so on purpose, for this loader
        meta = metas.get(name)
        members = [
            item
            for item in programs.values()
            if name in (item.name, item.group) or (meta and _is_build_of(item, meta))
        ]
        if stand_in := _stand_in(name, members, meta, capability):
            stand_ins[name] = stand_in
    return _arranged(programs, stand_ins)


def best(members: Sequence[Backend], capability: str) -> Backend | None:
    """Return the member to choose on a machine of this capability; None if none can run there."""
    usable = [item for item in members if not item.unusable]

    def key(place: int) -> tuple[object, ...]:
        item = usable[place]
        liked = preference(item.name, capability)
        return (
            _LAST if liked is None else liked,
            _misfit(item, capability),
            is_development(item.name),
            place,
        )

    # They come in the order of their sources, and of the names in each: the place is the last resort.
    return usable[min(range(len(usable)), key=key)] if usable else None


def _misfit(item: Backend, capability: str) -> int:
    """Return 0 for a build for exactly this capability, 1 for a more general one, 2 for another version."""
    if not item.requires or capability in item.requires:
        return 0
    return 1 if all(capability.startswith(need) for need in item.requires) else 2


def _suited(item: Backend, capability: str) -> Backend:
    if item.external or item.source is Source.EXTERNAL:
        return item
    needs = " and ".join(item.requires)
    if need := unmet(item.requires, capability):
        return replace(
            item,
            unsuited=f"it needs {need}, and this machine's capability is {capability!r};"
            " name it as the model's backend to try it all the same, or set"
            f" {FORCE}",
        )
    if item.explanation or item.unusable:
        return item
    return replace(
        item, explanation=f"needs {needs}, which is here" if needs else "runs on any hardware"
    )


def _stand_in(
    name: str, members: Sequence[Backend], meta: Backend | None, capability: str
) -> Backend | None:
    """Return the entry of a name that stands for others; None where it is a program's own name."""
    others = [item for item in members if item.name != name]
    if not others and any(item.name == name for item in members):
        return None
    recorded = next((item for item in members if meta and item.name == meta.stands_for), None)
    if meta and recorded and not recorded.unusable:
        chosen: Backend | None = recorded
        why = f"{recorded.name} was installed as {name}"
    else:
        chosen = best(members, capability)
        why = _why(chosen, members, capability) if chosen else ""
        if meta and chosen:
            lost = (recorded.unusable if recorded else "") or "it is not there any more"
            why += f"; {meta.stands_for}, which was installed as {name}, is not usable: {lost}"
    if chosen is None:
        reasons = [f"{item.name}: {item.unusable}" for item in members]
        if meta and recorded is None:
            reasons.insert(0, f"{meta.stands_for}: it is not installed any more")
        source = meta or members[0]
        return Backend(
            name,
            source=source.source,
            error=f"none of its builds can be used here: {'; '.join(reasons)}",
            revision="/".join(item.revision for item in members),
        )
    if chosen.name == name:
        return None
    return replace(
        chosen,
        name=name,
        aliases=(),
        folder_name="",
        group="",
        chosen=chosen.name,
        explanation=why,
        revision=f"{chosen.name}/{chosen.revision}",
    )


def _why(chosen: Backend, members: Sequence[Backend], capability: str) -> str:
    if len(members) == 1:
        return f"{chosen.name} is the only build that is installed"
    names = ", ".join(item.name for item in members)
    fits = preference(chosen.name, capability) is not None
    how = "fits best" if fits else "needs nothing special" if not chosen.requires else "is left"
    return f"{chosen.name} {how}, of {names}, as this machine's capability is {capability!r}"


def _is_build_of(item: Backend, meta: Backend) -> bool:
    if item.source is Source.EXTERNAL:
        return False
    return item.name == meta.stands_for or base_name(item.name) == base_name(meta.name)


def _arranged(programs: Mapping[str, Backend], stand_ins: Mapping[str, Backend]) -> Resolved:
    # A program whose name leads to another build now is still there, under its folder's name.
    renamed = {name: name for name in programs}
    taken = {*programs, *stand_ins}
    for name, item in programs.items():
        if name in stand_ins:
            free = item.folder_name and item.folder_name not in taken
            renamed[name] = item.folder_name if free else f"{name}-{item.source.name.lower()}"
            taken.add(renamed[name])
    leads_to = {name: renamed.get(item.chosen, "") for name, item in stand_ins.items()}
    every: dict[str, Backend] = {}
    for old, item in programs.items():
        name = renamed[old]
        for other, chosen in leads_to.items():
            if chosen == name:
                every[other] = replace(stand_ins[other], chosen=name)
        every[name] = replace(item, name=name)
    every |= {name: item for name, item in stand_ins.items() if not leads_to[name]}
    aliases: dict[str, str] = {}
    for name, item in every.items():
        if item.folder_name and item.folder_name not in every:
            aliases.setdefault(item.folder_name, name)
    for name, item in every.items():
        others = [other for other, chosen in leads_to.items() if chosen == name]
        others += [alias for alias, target in aliases.items() if target == name]
        every[name] = replace(item, aliases=tuple(others))
    return Resolved(every, aliases)
