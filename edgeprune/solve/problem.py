"""The decision that a solver makes, apart from how: choices, losses, costs, limits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from math import gcd, prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeprune.core.polynomial import Poly, branch_variable
from edgeprune.cost.kernels import Kernel, KernelGraph
from edgeprune.cost.memory import memory_model
from edgeprune.cost.pricing import padding, pricing
from edgeprune.coupling import Coupling, Group
from edgeprune.coupling.plan import Plan, keep_best
from edgeprune.profiles.profile import Profile
from edgeprune.scoring import Scores, branches_of
from edgeprune.solve.bits import FLOAT, INT8, Bit, Bits
from edgeprune.solve.latency_terms import LARGEST_TABLE, Factor, LatencyTerm, PolynomialForm

#: What each variable loses by each of its options.
Losses = Mapping[int, NDArray[np.float64]]

# Cached properties of a problem that losses have no part in.
_OF_COSTS = {"terms", "live", "parameters", "weights_mb", "_tiled"}

#: How many widths a group may choose from: the solver's work grows with the square of it.
MOST_OPTIONS = 16

#: No group shrinks below this share of its width: what is left would carry nothing.
LEAST_SHARE = 1 / 16


@dataclass(frozen=True)
class Limits:
    """Upper limits at the solver's own cost model; None = unrestricted.

    latency_ms, memory_mb: as in Budgets. parameters: how many may stay (size and rate mean that).
    """

    latency_ms: float | None = None
    memory_mb: float | None = None
    parameters: float | None = None

    def as_dict(self) -> dict[str, float | None]:
        return {
            "latency_ms": self.latency_ms,
            "memory_mb": self.memory_mb,
            "parameters": self.parameters,
        }

    def eased(self, full: Mapping[str, float], share: float) -> Limits:
        """Limits on the way from what the full model costs, 0, to these, 1."""

        def on_the_way(name: str, limit: float | None) -> float | None:
            if limit is None or limit >= full[name]:
                return limit
            return full[name] + share * (limit - full[name])

        return Limits(**{name: on_the_way(name, x) for name, x in self.as_dict().items()})


@dataclass(frozen=True)
class Reachable:
    """The least that each cost can come to, and the kernels that make most of it then."""

    costs: Mapping[str, float]
    obstacles: Sequence[tuple[str, float]]


@dataclass(frozen=True)
class Problem:
    """A variable per group (its width) and branch (1 = stays), numbered as in core/polynomial.py.

    options[v]: the values a variable may take, ascending. losses[v]: the loss of each.
    holder[g]: the branch variable whose 0 forces group g to 0.
    inside[b]: the branch variable whose 0 forces branch b to 0.
    """

    coupling: Coupling
    scores: Scores
    kernels: KernelGraph
    count: Poly  # trainable parameters that stay
    profile: Profile
    options: Mapping[int, NDArray[np.int64]]
    losses: Losses
    holder: Mapping[int, int]
    inside: Mapping[int, int]
    bits: Bits | None = None  # which layers may be int8, where that is to be decided too

    @staticmethod
    def build(
        coupling: Coupling,
        scores: Scores,
        kernels: KernelGraph,
        count: Poly,
        profile: Profile,
        method: str = "structured",
        keep: frozenset[str] = frozenset(),
    ) -> Problem:
        """method: channel, layer or structured. keep: parameters that stay as they are."""
        options: dict[int, NDArray[np.int64]] = {}
        losses: dict[int, NDArray[np.float64]] = {}
        holder, inside = {}, {}
        for branch in coupling.branches:
            v = branch_variable(branch.index)
            touched = branch.parameters.union(
                slot.parameter for g in branch.empties for slot in coupling.groups[g].slots
            )
            stays = method == "channel" or bool(touched & keep)
            options[v] = np.array([1] if stays else [0, 1])
            losses[v] = np.array([0.0] if stays else [scores.branches[branch.index], 0.0])
            outer = [
                b for b in coupling.branches if branch.nodes < b.nodes and branch.index != b.index
            ]
            if outer:
                smallest = min(outer, key=lambda b: len(b.nodes))
                inside[v] = branch_variable(smallest.index)
        emptied = {g: b for b in coupling.branches for g in b.empties}
        for group in coupling.groups:
            holders = branches_of(group, coupling)
            if group.index in emptied:
                holders.append(emptied[group.index])
            fixed = method == "layer" or any(s.parameter in keep for s in group.slots)
            widths = [group.size] if fixed else widths_of(group, profile.channel_multiple)
            loss = scores.curves[group.index][widths]
            if holders and len(options[branch_variable(holders[-1].index)]) > 1:
                holder[group.index] = branch_variable(holders[-1].index)
                widths, loss = [0, *widths], np.concatenate([[0.0], loss])
            options[group.index] = np.array(widths)
            losses[group.index] = np.asarray(loss, dtype=float)
        return Problem(coupling, scores, kernels, count, profile, options, losses, holder, inside)

    def with_bits(self, bits: Bits, losses: Mapping[int, float]) -> Problem:
        """The same decision with a precision for each layer. losses: of int8, by variable."""
        choices = np.array([INT8, FLOAT])
        return replace(
            self,
            options={**self.options, **dict.fromkeys(bits.variables, choices)},
            losses={**self.losses, **{v: np.array([losses[v], 0.0]) for v in bits.variables}},
            bits=bits,
        )

    def floats(self, values: Mapping[int, int]) -> frozenset[str] | None:
        """The layers that a choice leaves in float where others become int8; None where none do."""
        return None if self.bits is None else self.bits.floats(values)

    def in_int8(self) -> Problem:
        """The same decision with all layers in int8 that may be."""
        chosen = set(self.bits.variables) if self.bits is not None else set()
        return self._allowing(
            {v: (options == INT8) | (v not in chosen) for v, options in self.options.items()}
        )

    def shaped(self, power: float, branches: float, scale: float = 1.0) -> Problem:
        """The same decision with each loss raised to a power and scaled, and branches counting
        `branches` times as much."""
        factors = {v: scale * (branches if v < 0 else 1.0) for v in self.losses}
        return self.with_losses({v: factors[v] * x**power for v, x in self.losses.items()})

    def with_losses(self, losses: Losses) -> Problem:
        """The same decision with other losses."""
        made = replace(self, losses=losses)
        for name in _OF_COSTS & self.__dict__.keys():  # what was computed of costs stays right
            made.__dict__[name] = self.__dict__[name]
        return made

    def rescored(self, scores: Scores) -> Problem:
        """The same decision by other scores, with their losses and the units that they keep."""
        losses = dict(self.losses)
        for branch in self.coupling.branches:
            v = branch_variable(branch.index)
            whole = np.array([scores.branches[branch.index], 0.0])
            losses[v] = whole[self.options[v]] if len(self.options[v]) == 2 else np.zeros(1)
        for group in self.coupling.groups:
            options = self.options[group.index]
            loss = np.asarray(scores.curves[group.index][options], dtype=float)
            if group.index in self.holder:  # what a removed branch loses is the branch's
                loss = np.where(options == 0, 0.0, loss)
            losses[group.index] = loss
        return self.with_units(scores).with_losses(losses)

    def with_units(self, scores: Scores) -> Problem:
        """The same decision, the units that stay being the dearest by some scores."""
        made = replace(self, scores=scores)
        for name in _OF_COSTS & self.__dict__.keys():
            made.__dict__[name] = self.__dict__[name]
        return made

    def with_floor(self, share: float, units: int) -> Problem:
        """The same decision with no group below a share of its width, or below some units if it
        has twice as many; groups inside a branch may still go with it."""
        return self._allowing(
            {
                v: (options >= max(share * options[-1], min(units, options[-1] / 2)))
                | (options == 0)
                if v >= 0
                else options >= 0
                for v, options in self.options.items()
            }
        )

    def at_most(self, values: Mapping[int, int]) -> Problem:
        """The same decision with nothing wider than in an earlier choice."""
        return self._allowing({v: options <= values[v] for v, options in self.options.items()})

    def without(
        self, with_value: Mapping[int, NDArray[np.float64]], known: Mapping[int, int]
    ) -> Problem:
        """The same decision with no value of which each choice loses more than a known one.

        with_value: what a choice loses at least that has each option of a variable. Reduced-cost
        fixing (Dantzig, Fulkerson & Johnson 1954), here by exact least sums.
        """
        loss = self.loss(known)
        allowed = {
            v: (with_value[v] < loss) | (options == known[v]) if v in with_value else options >= 0
            for v, options in self.options.items()
        }
        # Least sums agree on what branches imply but for their last digits: no doubt about it.
        free = [(i, o) for i, o in self.inside.items() if len(allowed[i]) == len(allowed[o]) == 2]
        for inner, outer in sorted(free, key=lambda pair: -self._depth(pair[0])):
            allowed[outer][1] |= allowed[inner][1]
        for inner, outer in sorted(free, key=lambda pair: self._depth(pair[0])):
            allowed[inner][0] |= allowed[outer][0]
        for group, branch in self.holder.items():
            if len(allowed[branch]) == 2:
                stays = allowed[group][1:]
                allowed[group][1:] = allowed[branch][1] & (stays | (not stays.any()))
                allowed[group][0] = allowed[branch][0]
        return self._allowing(allowed)

    def _depth(self, branch: int | None) -> int:
        return 0 if branch is None else 1 + self._depth(self.inside.get(branch))

    def at_least(self, values: Mapping[int, int]) -> Problem:
        """The same decision with nothing narrower than in another choice."""
        return self._allowing({v: options >= values[v] for v, options in self.options.items()})

    def _allowing(self, allowed: Mapping[int, NDArray[np.bool_]]) -> Problem:
        return replace(
            self,
            options={v: options[allowed[v]] for v, options in self.options.items()},
            losses={v: losses[allowed[v]] for v, losses in self.losses.items()},
        )

    @property
    def full(self) -> dict[int, int]:
        """The values that remove nothing."""
        return {v: int(values[-1]) for v, values in self.options.items()}

    @property
    def smallest(self) -> dict[int, int]:
        """The values that cost least: every cost grows with every variable."""
        return {v: int(values[0]) for v, values in self.options.items()}

    def loss(self, values: Mapping[int, int]) -> float:
        """What a choice loses."""
        return sum(
            float(self.losses[v][np.searchsorted(options, values[v])])
            for v, options in self.options.items()
        )

    def costs(self, values: Mapping[int, Any]) -> dict[str, float]:
        """latency_ms, memory_mb and parameters of a choice."""
        if self.bits is not None:
            live = max((poly(values) for poly in self.live), default=0.0)
            return {
                "latency_ms": self.bits.latency_ms(self.kernels, self.profile, values),
                "memory_mb": live + self.weights_mb(values),
                "parameters": self.parameters(values),
            }
        return {
            "latency_ms": self.kernels.latency_ms(self.profile, values),
            "memory_mb": self.kernels.peak_memory_mb(self.profile, values),
            "parameters": self.count(values),
        }

    def within(self, values: Mapping[int, int], limits: Limits) -> bool:
        """Whether a choice keeps all limits."""
        costs = self.costs(values)
        return all(
            limit is None or costs[name] <= limit * (1 + 1e-9)
            for name, limit in limits.as_dict().items()
        )

    def reachable(self) -> Reachable:
        """What the smallest choice costs, and which kernels cost most there."""
        values = self.smallest
        latencies = self.kernels.kernel_latencies_ms(self.profile, values)
        priced = [(k.name, ms) for k, ms in zip(self.kernels.kernels, latencies, strict=True)]
        return Reachable(self.costs(values), sorted(priced, key=lambda item: -item[1])[:3])

    def plan(self, values: Mapping[int, int]) -> Plan:
        """The units and branches that a choice keeps and removes."""
        keep = keep_best(
            self.scores.importance, {g.index: values[g.index] for g in self.coupling.groups}
        )
        removed = frozenset(
            b.index for b in self.coupling.branches if values[branch_variable(b.index)] == 0
        )
        return Plan(keep, removed)

    def values(self, plan: Plan) -> dict[int, int]:
        """The choice that a plan is."""
        return {v: int(x) for v, x in plan.variables(self.coupling).items()}

    @cached_property
    def terms(self) -> tuple[LatencyTerm, ...]:
        """The latency of each kernel, and of what lies between int8 and float."""
        bits = self.bits or Bits({})
        layers = enumerate(self.kernels.kernels)
        terms = [self._term(kernel, bits.layers.get(place)) for place, kernel in layers]
        return (*terms, *(self._term(each.kernel, each) for each in bits.borders))

    def _term(self, kernel: Kernel, factor: Factor | None = None) -> LatencyTerm:
        reduced = replace(
            kernel,
            macs=self._reduced(kernel.macs),
            moved=self._reduced(kernel.moved),
            weights=self._reduced(kernel.weights),
            written=self._reduced(kernel.written),
            channels=tuple(map(self._reduced, kernel.channels)),
        )
        present = Poly.constant(1)
        if kernel.branch is not None:
            present = self._reduced(Poly.variable(branch_variable(kernel.branch)))
        source = pricing(self.profile)
        beside = frozenset() if factor is None else factor.variables
        free = [
            v for v in reduced.variables | present.variables | beside if len(self.options[v]) > 1
        ]
        form = PolynomialForm.analytic if self.profile.tables is None else PolynomialForm.fitted
        exact = factor is None or isinstance(factor, Bit)
        whole = PolynomialForm.nothing()
        if exact:
            whole = form(reduced, present, self.profile, {v: self.options[v] for v in self.options})
        if isinstance(factor, Bit):
            whole = whole.times(factor.polynomial)
        implied = {self.holder[g]: g for g in free if self.holder.get(g) in free}
        tables = {v: self.options[v] for v in sorted(free) if v not in implied}
        combinations = prod(len(options) for options in tables.values())
        lookup = len(tables) <= 3 and combinations <= LARGEST_TABLE
        options = tables if lookup else None
        return LatencyTerm(reduced, source, whole, options, implied, factor, exact)

    def _reduced(self, poly: Poly) -> Poly:
        """Without branch bits that a group's own 0, or an inner branch's, already implies."""
        terms: dict[tuple[int, ...], float] = {}
        for monomial, c in poly.terms.items():
            implied = set()
            for v in monomial:
                above = self.holder.get(v) if v >= 0 else self.inside.get(v)
                while above is not None:
                    implied.add(above)
                    above = self.inside.get(above)
            bits = {v for v in monomial if v < 0} - implied  # a bit's square is itself
            key = tuple(sorted([*bits, *(v for v in monomial if v >= 0)]))
            terms[key] = terms.get(key, 0.0) + c
        return Poly(terms)

    @cached_property
    def live(self) -> tuple[Poly, ...]:
        """MB that each step's activations take, steps that another one covers left out."""
        size = self.profile.bytes_per_element
        steps = {}
        for live in memory_model(self.profile).steps(self.kernels, size):
            poly = self._reduced(live)
            steps[frozenset(poly.terms.items())] = poly
        polys = list(steps.values())
        return tuple(p for p in polys if not any(q is not p and _covers(q, p) for q in polys))

    @cached_property
    def parameters(self) -> Poly:
        """How many trainable parameters stay."""
        if self.bits is not None and self.bits.by_size:
            return self._reduced(self.count + self.bits.spared() * -1.0)
        return self._reduced(self.count)

    @cached_property
    def weights_mb(self) -> Poly:
        """MB of parameters and buffers at run time, and what the runtime itself takes."""
        model = memory_model(self.profile)
        held = model.held(self.kernels, self.profile.bytes_per_element)
        if self.bits is not None:
            spared = self.bits.spared() * (model.weights * self.profile.bytes_per_element / 1e6)
            held = held + spared * -1.0
        return self._reduced(held + model.base_mb)

    def padded(self, variable: int) -> NDArray[np.float64]:
        """A variable's options as the arithmetic sees them: see `padding`."""
        options = self.options[variable].astype(float)
        if variable < 0 or variable not in self._tiled:
            return options
        return options * padding(options, self.profile.channel_multiple)

    @cached_property
    def _tiled(self) -> frozenset[int]:
        """Groups that are a channel dimension of some kernel by themselves."""
        return frozenset().union(*(term.form.tiled for term in self.terms))


def widths_of(group: Group, tile: int) -> list[int]:
    """The widths that a group may take: multiples of what the device computes at once.

    A group whose units span several indices (a head of 64) reaches a tile with fewer units. Where
    whole tiles leave under four choices, halves and quarters of a tile are let in.
    """
    span = min(slot.per_unit for slot in group.slots)
    step = max(tile // gcd(tile, span), 1)
    while step > 1 and group.size < 4 * step:
        step //= 2
    least = max(step, -(-round(group.size * LEAST_SHARE) // step) * step)
    widths = list(range(least, group.size, step))
    if len(widths) >= MOST_OPTIONS:
        picked = np.linspace(0, len(widths) - 1, MOST_OPTIONS - 1).round().astype(int)
        widths = [widths[i] for i in dict.fromkeys(picked)]
    return [*widths, group.size]


def _covers(larger: Poly, smaller: Poly) -> bool:
    """Whether one polynomial is at least the other wherever variables are not negative."""
    return all(larger.terms.get(m, 0.0) >= c for m, c in smaller.terms.items())
