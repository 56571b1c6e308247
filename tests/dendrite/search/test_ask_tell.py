from __future__ import annotations

import math
import pickle
from collections.abc import Callable
from fractions import Fraction
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from dendrite.errors import InvalidArgument
from dendrite.search.ask_tell import AbMctsA, Ask, AskTell, BestFirst, Node, Policy, UctPolicy
from dendrite.search.policies import Descent, Place
from dendrite.search.stats import VisitStats, child_limit, puct, uct
from dendrite.search.thompson import Beta, Gaussian, Tally, decision

policies: st.SearchStrategy[Policy] = st.one_of(
    st.builds(
        UctPolicy,
        c=st.none() | st.floats(0, 2),
        widening_k=st.sampled_from([0.5, 1.0, 2.5]),
        widening_alpha=st.sampled_from([0.0, 0.5, 1.0]),
    ),
    st.builds(AbMctsA, prior=st.sampled_from([Gaussian(), Gaussian(0.5, 2.0, 3.0, 0.02), Beta(), Beta(1.0, 2.0)])),
    st.builds(BestFirst, epsilon=st.sampled_from([0.0, 0.3, 1.0])),
)
values = st.sampled_from([0.0, 0.1, 0.2, 0.3, 0.7, 1.0]) | st.floats(0, 1)


def grown(policy: Policy, answers: int, judge: Callable[[Ask[str]], float], seed: int = 0) -> AskTell[str]:
    """Ask and tell one after another."""
    search = AskTell[str](policy, seed)
    for _ in range(answers):
        (ask,) = search.ask()
        search.tell(ask.id, judge(ask), "x")
    return search


def noise(ask: Ask[str]) -> float:
    return Random(str(ask.path)).random()


class Model:
    """The same by hand: a list of what was asked, and everything else counted anew each time."""

    def __init__(self, policy: Policy, seed: int) -> None:
        self.policy, self.seed = policy, seed
        self.asked: list[int] = []
        """Of each ask the node; the first ask has id 1."""
        self.told: dict[int, float] = {}
        self.priors: dict[int, float] = {}
        self.given_up: set[int] = set()
        self.finished: set[int] = set()

    @property
    def nodes(self) -> list[int]:
        return [0, *sorted(self.told)]

    @property
    def waiting(self) -> list[int]:
        return [ask for ask in range(1, len(self.asked) + 1) if ask not in self.told and ask not in self.given_up]

    def parent(self, node: int) -> int:
        return self.asked[node - 1]

    def children(self, node: int) -> list[int]:
        return [child for child in sorted(self.told) if self.parent(child) == node]

    def below(self, node: int) -> list[int]:
        return [each for child in self.children(node) for each in (child, *self.below(child))]

    def path(self, node: int) -> tuple[int, ...]:
        if node == 0:
            return ()
        parent = self.parent(node)
        return (*self.path(parent), self.asked[: node - 1].count(parent))

    def here(self, node: int) -> int:
        return sum(self.parent(ask) == node for ask in self.waiting)

    def in_flight(self, node: int) -> int:
        return sum(self.here(each) for each in (node, *self.below(node)))

    def passed(self, node: int) -> int:
        within = {node, *self.below(node)}
        return sum(each in within for each in self.asked)

    def stats(self, node: int) -> VisitStats:
        seen = [self.told[each] for each in (node, *self.below(node)) if each in self.told]
        return VisitStats(len(seen), float(sum(map(Fraction, seen))), self.in_flight(node))

    def open(self, node: int) -> bool:
        waits = node not in self.finished or self.here(node) > 0
        return waits or any(self.open(child) for child in self.children(node))

    def select(self, node: int = 0) -> int | None:
        if isinstance(self.policy, BestFirst):
            return self.best_first(self.policy)
        for choice in self.choices(node):
            found = node if choice == node else self.select(choice)
            if found is not None:
                return found
        return None

    def best_first(self, policy: BestFirst) -> int | None:
        able = [node for node in self.nodes if node not in self.finished]
        rng = decision(self.seed, (), len(self.asked))
        if able and rng.random() < policy.epsilon:
            return rng.choice(able)
        return min(able, key=lambda node: (-self.told.get(node, -1), self.asked.count(node), node), default=None)

    def choices(self, node: int) -> list[int]:
        children = [child for child in self.children(node) if self.open(child)]
        here = [] if node in self.finished else [node]
        if isinstance(self.policy, UctPolicy):
            limit = child_limit(self.stats(node).visits, self.policy.widening_k, self.policy.widening_alpha)
            ranked = sorted(children, key=lambda child: -self.score(child, self.policy))
            return (here if len(children) + self.here(node) < limit else []) + ranked
        assert isinstance(self.policy, AbMctsA)
        if not children:
            return here
        rng = decision(self.seed, self.path(node), self.passed(node))
        own = self.children(node)
        gen = self.draw(rng, own, self.here(node))
        cont = self.draw(rng, sorted(set(self.below(node)) - set(own)), self.in_flight(node) - self.here(node))
        draws = {child: self.draw(rng, [child, *self.below(child)], self.in_flight(child)) for child in children}
        ranked = sorted(children, key=lambda child: -draws[child])
        return here + ranked if gen >= cont else ranked + here

    def score(self, child: int, policy: Any) -> float:
        parent = self.parent(child)
        if self.priors:
            share = self.priors[child] / math.fsum(self.priors[each] for each in self.children(parent))
            return puct(self.stats(child), self.stats(parent), share, 0.5 if policy.c is None else policy.c)
        return uct(self.stats(child), self.stats(parent), math.sqrt(2) if policy.c is None else policy.c)

    def draw(self, rng: Random, seen: list[int], in_flight: int) -> float:
        assert isinstance(self.policy, AbMctsA)
        tally = sum((Tally.of(self.told[each]) for each in seen), Tally())
        return self.policy.prior.posterior(tally).draw(rng, in_flight)


class AskTellMachine(RuleBasedStateMachine):
    @initialize(policy=policies, seed=st.integers(0, 5), with_priors=st.booleans())
    def plant(self, policy: Policy, seed: int, with_priors: bool) -> None:
        self.search = AskTell[str](policy, seed, root="root")
        self.model = Model(policy, seed)
        self.with_priors = with_priors and policy.by_priors

    @rule(k=st.integers(0, 5))
    def ask(self, k: int) -> None:
        asks = self.search.ask(k)
        for ask in asks:
            assert ask.node == self.model.select()
            self.model.asked.append(ask.node)
            assert ask.id == len(self.model.asked)
            assert ask.path == self.model.path(ask.id)
            assert ask.depth == len(ask.path) - 1 == len(ask.states) - 1
            assert ask.state == ask.states[-1] == self.state(ask.node)
            assert ask.states[0] == "root"
        assert len(asks) == k or self.model.select() is None

    @rule(data=st.data(), value=values, prior=st.floats(0.01, 1))
    def tell(self, data: st.DataObject, value: float, prior: float) -> None:
        if self.model.waiting:
            ask = data.draw(st.sampled_from(self.model.waiting))
            self.model.told[ask] = value
            if self.with_priors:
                self.model.priors[ask] = prior
            assert self.tell_again(ask) == ask

    @rule(data=st.data())
    def tell_the_same(self, data: st.DataObject) -> None:
        if self.model.told:
            ask = data.draw(st.sampled_from(sorted(self.model.told)))
            before = pickle.dumps(self.search)
            assert self.tell_again(ask) == ask
            with pytest.raises(InvalidArgument, match="something else"):
                self.search.tell(ask, self.model.told[ask], "other", prior=self.model.priors.get(ask))
            with pytest.raises(InvalidArgument, match="has been told"):
                self.search.give_up(ask)
            assert self.search == pickle.loads(before)

    @rule(data=st.data())
    def give_up(self, data: st.DataObject) -> None:
        if self.model.waiting:
            ask = data.draw(st.sampled_from(self.model.waiting))
            self.model.given_up.add(ask)
            self.search.give_up(ask)
            self.search.give_up(ask)
            with pytest.raises(InvalidArgument, match="given up"):
                self.search.tell(ask, 0.5)

    @rule(data=st.data())
    def finish(self, data: st.DataObject) -> None:
        node = data.draw(st.sampled_from(self.model.nodes))
        if node or data.draw(st.integers(0, 9)) == 0:
            self.model.finished.add(node)
            self.search.finish(node)

    @rule()
    def go_on_from_a_pickle(self) -> None:
        copy = pickle.loads(pickle.dumps(self.search))
        assert copy == self.search
        self.search = copy

    @invariant()
    def agree(self) -> None:
        model, search = self.model, self.search
        assert [node.id for node in search.nodes] == model.nodes
        assert search.tree == {node: tuple(model.children(node)) for node in model.nodes}
        assert [ask.id for ask in search.waiting] == model.waiting
        for node in search.nodes:
            stats = model.stats(node.id)
            assert (node.visits, node.mean, node.in_flight) == (stats.visits, stats.mean, stats.in_flight)
            assert node.waiting == model.here(node.id)
            assert (node.value, node.prior) == (model.told.get(node.id), model.priors.get(node.id))
            assert (node.path, node.state) == (model.path(node.id), self.state(node.id))
            assert node.finished == (node.id in model.finished)
        best = search.best()
        if best is None:
            assert not model.told
        else:
            assert best.id == min(model.told, key=lambda node: (-model.told[node], node))

    def tell_again(self, ask: int) -> int:
        return self.search.tell(ask, self.model.told[ask], self.state(ask), prior=self.model.priors.get(ask))

    @staticmethod
    def state(node: int) -> str:
        return f"state {node}" if node else "root"


TestAskTell = AskTellMachine.TestCase
TestAskTell.settings = settings(max_examples=60, stateful_step_count=30)


@pytest.mark.parametrize("policy", [UctPolicy(), UctPolicy(c=0.1, widening_k=2.5), AbMctsA(), AbMctsA(Beta())])
def test_a_busy_search_chooses_as_by_hand(policy: Policy) -> None:
    """Much in flight, so that what waits decides; the state machine seldom comes to such trees."""
    for seed in range(3):
        rng, search, model = Random(seed), AskTell[str](policy, seed), Model(policy, seed)
        for _ in range(30):
            for _ in range(2):
                expected = model.select()
                assert [ask.node for ask in search.ask()] == ([] if expected is None else [expected])
                model.asked += [] if expected is None else [expected]
            ask = rng.choice(model.waiting)
            if rng.random() < 0.2:
                model.given_up.add(ask)
                search.give_up(ask)
            else:
                model.told[ask] = rng.random()
                search.tell(ask, model.told[ask])


@settings(max_examples=60)
@given(policy=policies, seed=st.integers(0, 9), rounds=st.lists(st.integers(1, 6), max_size=6), data=st.data())
def test_the_order_of_answers_leaves_no_trace(
    policy: Policy, seed: int, rounds: list[int], data: st.DataObject
) -> None:
    """Values are such that adding them up in another order would round otherwise."""
    one, other = AskTell[int](policy, seed), AskTell[int](policy, seed)
    for k in rounds:
        asks = one.ask(k)
        assert other.ask(k) == asks
        answers = [(ask.id, noise(ask) / 3, noise(ask) < 0.2) for ask in asks]  # type: ignore[arg-type]
        answer(one, answers)
        answer(other, data.draw(st.permutations(answers)))
        assert one == other
        assert one.nodes == other.nodes
    assert one.ask(3) == other.ask(3)


def answer(search: AskTell[int], answers: list[tuple[int, float, bool]]) -> None:
    for ask_id, value, failed in answers:
        if failed:
            search.give_up(ask_id)
        else:
            search.finish(search.tell(ask_id, value)) if value > 0.3 else search.tell(ask_id, value)


def test_other_answers_are_another_tree() -> None:
    one, other = AskTell[str](AbMctsA()), AskTell[str](AbMctsA())
    for search, value in ((one, 0.5), (other, 0.6)):
        search.tell(search.ask()[0].id, value)
    assert one != other
    assert one != AskTell[str](AbMctsA(), seed=1)
    assert one != "a tree"


def test_uct_widens_and_goes_down_as_by_hand() -> None:
    search = AskTell[str](UctPolicy(c=1.0, widening_k=2, widening_alpha=0))
    first, second = search.ask(5)
    assert (first.node, second.node, search.ask()) == (0, 0, []), "two children, and nothing to go down to yet"
    search.tell(first.id, 0.2, "a")
    (third,) = search.ask()
    assert third.states == (None, "a"), "the second is still in flight"
    search.tell(second.id, 0.9, "b")
    # a: 0.2 + sqrt(ln 3 / 2) = 0.94; b: 0.9 + sqrt(ln 3 / 1) = 1.95. With one in flight at b: sqrt(ln 4 / 2) = 0.83.
    # b: 1.73, a: 0.2 + 0.83 = 1.03. With two: 0.9 + sqrt(ln 5 / 3) = 1.63, but b may have no third child.
    assert [ask.state for ask in search.ask(3)] == ["b", "b", "a"]


def test_priors_make_it_puct() -> None:
    search = AskTell[str](UctPolicy(c=1.0, widening_k=2, widening_alpha=0))
    for ask, prior in zip(search.ask(2), (0.8, 0.2), strict=True):
        search.tell(ask.id, 0.5, f"{prior}", prior=prior)
    # With N = 2 + in flight: 0.8 sqrt(2) / 2 = 0.57 to 0.14; 0.8 sqrt(3) / 3 = 0.46 to 0.17; then two are pending.
    assert [ask.state for ask in search.ask(3)] == ["0.8", "0.8", "0.2"]
    with pytest.raises(InvalidArgument, match="every child or for none"):
        search.tell(search.waiting[0].id, 0.5)


def test_priors_count_in_proportion_to_their_siblings() -> None:
    search = AskTell[str](UctPolicy(c=1.0, widening_k=2, widening_alpha=0))
    for ask, (value, prior) in zip(search.ask(2), ((0.5, 0.02), (0.4, 0.08)), strict=True):
        search.tell(ask.id, value, prior=prior)
    # Shares 0.2 and 0.8: 0.5 + 0.2 sqrt(2) / 2 = 0.64 to 0.4 + 0.8 sqrt(2) / 2 = 0.97.
    assert [ask.node for ask in search.ask()] == [2]


def test_a_child_that_is_done_with_makes_room_for_another() -> None:
    search = AskTell[str](UctPolicy(widening_k=1, widening_alpha=0))
    search.tell(search.ask()[0].id, 0.5)
    (ask,) = search.ask()
    search.finish(1)
    assert (ask.node, search.ask()) == (1, []), "it may have a child yet"
    search.give_up(ask.id)
    assert [ask.node for ask in search.ask()] == [0]


def test_best_first_is_greedy_and_spreads_by_chance() -> None:
    search = AskTell[str](BestFirst())
    assert [ask.node for ask in search.ask(3)] == [0, 0, 0], "there is nothing else yet"
    for ask, value in zip(search.waiting, (0.3, 0.8, 0.8), strict=True):
        search.tell(ask.id, value)
    assert [ask.node for ask in search.ask(3)] == [2, 3, 2]
    search.finish(2)
    search.finish(3)
    assert [ask.node for ask in search.ask(2)] == [1, 1]
    assert {ask.node for ask in grown(BestFirst(epsilon=1.0), 20, noise).ask(40)} > {0, 1, 2, 3}


def test_parallel_asks_spread() -> None:
    """Eight equal children: with every other draw the same, what is in flight sends more asks elsewhere."""

    class Blind(AbMctsA):
        def order(self, node: int, places: Any, seed: int) -> Any:
            return super().order(node, {key: forget(place) for key, place in places.items()}, seed)

    def visited(policy: Descent) -> int:
        spread = 0
        for seed in range(60):
            search = AskTell[str](policy, seed)
            for child in search.ask(1) + [search._depart(0) for _ in range(7)]:
                search.tell(child.id, 0.6)
            search.finish(0)
            spread += len({ask.path[0] for ask in search.ask(8)})
        return spread

    aware, blind = visited(AbMctsA(Gaussian(0.5))), visited(Blind(Gaussian(0.5)))
    assert aware > blind


def forget(place: Place[Any]) -> Place[Any]:
    return Place(**{name: getattr(place, name) for name in Place.__slots__} | {"waiting": 0, "in_flight": 0})


def wide(ask: Ask[str]) -> float:
    """Children of the root differ much, and nothing below them is any good."""
    return noise(ask) if ask.node == 0 else 0.05


def deep(ask: Ask[str]) -> float:
    """Each step on gains something, wherever it starts from."""
    return min(1.0, 0.1 + 0.15 * ask.depth + 0.02 * noise(ask))


@pytest.mark.parametrize("prior", [Gaussian(), Beta()])
def test_adaptive_branching_goes_where_the_better_children_are(prior: Any) -> None:
    for seed in range(3):
        shallow = grown(AbMctsA(prior), 100, wide, seed)
        assert len(shallow.node(0).children) > 80
        steep = grown(AbMctsA(prior), 100, deep, seed)
        assert len(steep.node(0).children) < 25
        best = steep.best()
        assert best is not None
        assert len(best.path) >= 5


def test_a_finished_node_passes_the_search_on_to_its_children() -> None:
    search = AskTell[str](AbMctsA())
    search.tell(search.ask()[0].id, 0.5)
    search.finish(0)
    assert [ask.node for ask in search.ask(2)] == [1, 1]
    search.finish(1)
    assert search.ask() == [], "what is in flight may still be told"
    search.tell(2, 0.5)
    search.give_up(3)
    assert [ask.node for ask in search.ask(1)] == [2]
    search.give_up(4)
    search.finish(2)
    assert (search.ask(), search.waiting) == ([], [])


def test_a_path_may_be_longer_than_python_recurses() -> None:
    search = AskTell[str](BestFirst())
    for step in range(400):
        search.tell(search.ask()[0].id, step / 400)
    copy = pickle.loads(pickle.dumps(search))
    assert copy == search
    assert copy.ask()[0].depth == 400
    seen = Tally.of(0.5)
    chain: dict[int, Place[str]] = {at: Place(at - 1, children=[at + 1], seen=seen) for at in range(1, 1500)}
    places = {0: Place(children=[1], seen=seen), **chain, 1500: Place(1499)}
    assert UctPolicy(widening_k=1, widening_alpha=0).select(places, 0) == 1500


def test_nodes_are_shown_as_they_are_now() -> None:
    search = AskTell[str](BestFirst(), root="start")
    assert search.best() is None
    search.tell(search.ask()[0].id, 1, "a")
    search.ask()
    assert search.node(1) == Node(1, 0, "a", 1.0, None, (0,), (), 1, 1.0, 1, 1, False)
    assert search.best() == search.node(1)
    assert search.node(0).visits == 1


@pytest.mark.parametrize(
    ("call", "names"),
    [
        (lambda search: search.tell(1, 1.1), "value=1.1"),
        (lambda search: search.tell(1, math.nan), "value=nan"),
        (lambda search: search.tell(1, True), "value=True"),
        (lambda search: search.tell(1, "1"), "value='1'"),
        (lambda search: search.tell(0, 0.5), "ask_id=0: is no ask"),
        (lambda search: search.tell(9, 0.5), "ask_id=9: is no ask"),
        (lambda search: search.tell(1, 0.5, prior=0.5), "prior=0.5: BestFirst"),
        (lambda search: search.give_up(9), "ask_id=9: is no ask"),
        (lambda search: search.give_up(0), "ask_id=0: is no ask"),
        (lambda search: search.finish(1), "node=1"),
        (lambda search: search.node(7), "node=7"),
        (lambda search: search.ask(-1), "k=-1"),
        (lambda search: AskTell("uct"), "policy='uct'"),  # type: ignore[arg-type]
        (lambda search: AskTell(BestFirst(), -1), "seed=-1"),
        (lambda search: BestFirst(2.0), "epsilon=2.0"),
        (lambda search: UctPolicy(c=-1.0), "c=-1.0"),
        (lambda search: UctPolicy(widening_k=0.0), "widening_k=0.0"),
        (lambda search: UctPolicy(widening_alpha=math.nan), "widening_alpha=nan"),
    ],
)
def test_what_cannot_be_is_refused_and_changes_nothing(call: Callable[[AskTell[str]], object], names: str) -> None:
    search = AskTell[str](BestFirst())
    search.ask()
    before = pickle.dumps(search)
    with pytest.raises(InvalidArgument) as refused:
        call(search)
    assert names in str(refused.value)
    assert search == pickle.loads(before)


def test_priors_are_probabilities() -> None:
    search = AskTell[str](UctPolicy())
    search.ask()
    for prior in (0.0, 1.5, math.nan):
        with pytest.raises(InvalidArgument, match="prior"):
            search.tell(1, 0.5, prior=prior)
