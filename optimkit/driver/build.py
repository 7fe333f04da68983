"""From entries to buckets: chains, programs, plans, engines. Done when the structure changes, not in a step."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np

from optimkit.driver.bucket import Bucket
from optimkit.driver.chain import Chain, trace
from optimkit.driver.entries import Entry, Group
from optimkit.engines.choose import choose
from optimkit.fusion.stages import Plan, Program, make_plan, total_rounds
from optimkit.params import matches
from optimkit.rule import Rule, Transform

_programs: dict[Hashable, Program] = {}
_plans: dict[Hashable, Plan] = {}
_MOST = 512  # programs kept; a notebook that defines a class again and again must not grow for ever


def chain_of(cls: type[Rule], group: Group, links: Sequence[Transform], entry: Entry | None, maximize: bool) -> Chain:
    """The chain of one parameter: the links whose `where` selects it. Without an entry: all links."""
    chosen = tuple(
        (index, link) for index, link in enumerate(links, 1) if entry is None or matches(link.where, entry.param, entry.name)
    )
    return Chain(group.rule(cls), chosen, maximize)


def program_of(chain: Chain, wide: bool, check: bool, device_count: bool = False) -> tuple[Hashable, Program]:
    """The traced program of a chain, and its key; each structure is traced once."""
    key = (chain.key(), wide, check, device_count)
    if key not in _programs:
        if len(_programs) >= _MOST:
            _programs.clear()
            _plans.clear()
        _programs[key] = trace(chain, wide=wide, check=check, device_count=device_count)
    return key, _programs[key]


def plan_of(key: Hashable, program: Program, floor: Mapping[Hashable, int]) -> Plan:
    full = (key, tuple(sorted(floor.items(), key=repr)))
    if full not in _plans:
        _plans[full] = make_plan(program, floor)
    return _plans[full]


def build_buckets(
    cls: type[Rule],
    entries: Sequence[Entry],
    links: Sequence[Transform],
    maximize: bool,
    check: bool,
    engine: str | None,
    device_count: bool = False,
) -> list[Bucket]:
    """Sort entries into buckets and set an engine to work on each.

    With `device_count`, engines whose arrays live on a device count updates there.
    """
    wide = any(entry.param.dtype == "float64" for entry in entries)
    sorted_: dict[Hashable, list[int]] = {}
    chains: dict[Hashable, Chain] = {}
    by_group: dict[tuple[int, tuple[int, ...]], tuple[Chain, Hashable]] = {}
    for place, entry in enumerate(entries):
        chain = chain_of(cls, entry.group, links, entry, maximize)
        known = by_group.get((id(entry.group), tuple(index for index, _ in chain.links)))
        if known is None:
            known = chain, chain.key()
            by_group[id(entry.group), tuple(index for index, _ in chain.links)] = known
        own: Hashable = (entry.bucket_key, known[1])
        chains.setdefault(own, known[0])
        sorted_.setdefault(own, []).append(place)
    runners: dict[Hashable, Any] = {}
    for key, places in sorted_.items():
        param = entries[places[0]].param
        runners[key] = choose(param.library, param.device, engine)
    programs = {
        key: program_of(chains[key], wide, check, device_count and runners[key].together is not None) for key in sorted_
    }
    floor = total_rounds([program for _, program in programs.values()])
    buckets = []
    for key, places in sorted_.items():
        chosen = [entries[place] for place in places]
        plan = plan_of(*programs[key], floor)
        buckets.append(Bucket(chosen, places, chains[key], plan, runners[key]))
    return buckets


def shared_slots(buckets: Sequence[Bucket], shared: dict[tuple[int, str], np.ndarray]) -> None:
    """Make the slots that an optimizer has once."""
    for bucket in buckets:
        for key, slot in bucket.chain.slots().items():
            if slot.extent == "optimizer":
                shared.setdefault(key, np.full((), slot.value))


def explain_rule(
    cls: type[Rule], rule: Any, links: Sequence[Transform], dtype: str, maximize: bool, check: bool, engine: str
) -> str:
    """The stages and kernels of a rule for arrays of a dtype, without parameters."""
    chain = Chain(rule, tuple(enumerate(links, 1)), maximize)
    key, program = program_of(chain, dtype == "float64", check)
    return explain_plan(plan_of(key, program, total_rounds([program])), dtype, engine)


def explain_plan(plan: Plan, dtype: str, engine: str) -> str:
    """A plan's stages, and the text of its kernels for an engine, "numba" or "cuda"."""
    from optimkit.engines.cuda_text import module_text
    from optimkit.engines.numba_text import kernel_text
    from optimkit.fusion.show import show_plan

    if engine == "cuda":
        slots = [key for key in plan.slot_outputs if key[-1] == "optimizer"]  # type: ignore[index]
        kernels = [module_text(plan, dtype, [node.key for node in plan.program.totals], slots)]
    else:
        kernels = [kernel_text(plan, number, dtype) for number in range(len(plan.stages))]
    itemsize = {"float32": 4, "float64": 8}[dtype]
    return "\n\n".join([show_plan(plan, itemsize), *kernels])
