from __future__ import annotations

import itertools
import math
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sweeps.plan import brackets_of, cells_of, group_label, grown_lrs, price, trials_of, whole_batches
from sweeps.spec import Axes, LawSpec, Part, Range, Reports, Result, Seeds, Size, Sweep, Trial, Variant

SIZE = Size(
    parameters=100,
    total_parameters=120,
    flops_per_token=600.0,
    tokens_per_example=1,
    unit="sample",
    train_tokens=None,
    data_fingerprint="d",
)


def sweep(schedule: str = "wsd", **axes: object) -> Sweep:
    given_axes = {
        "lr": Range(1e-3, 1e-1, "log", 5),
        "batch_tokens": (256, 1024),
        "tokens": (2**17, 2**18),
        "seeds": Seeds((0, 1), up_to_tokens=2**17),
        **axes,
    }
    variant = Variant(Part("quadratic"), Part("sgd"), SIZE)
    return Sweep(name="s", variants=(variant,), schedule=Part(schedule), axes=Axes(**given_axes))  # type: ignore[arg-type]


def test_a_cell_is_made_for_every_batch_and_token_count() -> None:
    cells = cells_of(sweep())
    assert [(c.batch_tokens, c.tokens, c.seeds) for c in cells] == [
        (256, 2**17, (0, 1)),
        (256, 2**18, (0,)),
        (1024, 2**17, (0, 1)),
        (1024, 2**18, (0,)),
    ]


def test_steps_mean_tokens_in_proportion_to_the_batch() -> None:
    cells = cells_of(sweep(tokens=None, steps=(10, 20)))
    assert [(c.batch_tokens, c.tokens) for c in cells] == [(256, 2560), (256, 5120), (1024, 10240), (1024, 20480)]


@given(st.integers(1, 10**7), st.integers(1, 10**5))
def test_a_horizon_is_whole_batches_and_the_nearest_of_them(tokens: int, batch: int) -> None:
    rounded = whole_batches(tokens, batch)
    assert rounded % batch == 0
    assert rounded >= batch
    assert abs(rounded - tokens) <= max(batch / 2, batch - tokens)


def test_every_trial_of_a_plan_has_its_own_key() -> None:
    asked = sweep()
    trials = [t for b in brackets_of(asked) for t in trials_of(asked, b, (1e-3, 1e-2))]
    assert len({t.key for t in trials}) == len(trials) == 2 * (2 * 2 + 2 * 1)


def test_a_longer_token_axis_leaves_the_keys_of_the_other_trials_alone() -> None:
    short, long = sweep(), sweep(tokens=(2**17, 2**18, 2**19))
    keys = [{t.key for b in brackets_of(s) for t in trials_of(s, b, (1e-3,))} for s in (short, long)]
    assert keys[0] < keys[1]


def test_under_a_constant_schedule_one_run_serves_every_horizon() -> None:
    asked = sweep("constant", seeds=Seeds((0,)))
    (small, large) = brackets_of(asked)
    assert [len(small.cells), len(large.cells)] == [2, 2]
    (trial,) = trials_of(asked, small, (1e-3,))
    assert trial.tokens == 2**18
    assert {2**17, 2**18} <= set(trial.marks)


def test_under_a_constant_schedule_a_longer_horizon_keeps_the_key_and_only_adds_marks() -> None:
    short, long = sweep("constant"), sweep("constant", tokens=(2**17, 2**18, 2**20))
    (a, *_), (b, *_) = (trials_of(s, brackets_of(s)[0], (1e-3,)) for s in (short, long))
    assert a.key == b.key
    assert b.marks[: len(a.marks)] == a.marks
    assert b.tokens == 2**20


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.integers(256, 10**6), min_size=1, max_size=4),
    st.lists(st.integers(256, 10**6), min_size=1, max_size=3),
    st.sampled_from([1, 2, 5]),
)
def test_under_an_open_ended_schedule_more_horizons_keep_the_key_and_the_ladder(
    first: list[int], more: list[int], per_octave: int
) -> None:
    def only(tokens: list[int]) -> Trial:
        asked = sweep("constant", tokens=tuple(dict.fromkeys(tokens)), batch_tokens=(256,), seeds=Seeds((0,)))
        asked = replace(asked, reports=Reports(per_octave=per_octave))
        (trial,) = trials_of(asked, brackets_of(asked)[0], (1e-3,))
        return trial

    one, other = only(first), only([*first, *more])
    assert one.key == other.key
    ladders = [[mark for mark in trial.marks if mark not in trial.asides] for trial in (one, other)]
    assert ladders[0] == [mark for mark in ladders[1] if mark <= one.tokens]
    assert set(one.asides) <= set(other.asides)


def test_the_marks_of_an_open_ended_run_double_from_step_8_on_and_other_horizons_are_asides() -> None:
    asked = sweep("constant", tokens=(65536, 92682, 50000), batch_tokens=(256,), seeds=Seeds((0,)))
    (trial,) = trials_of(asked, brackets_of(asked)[0], (1e-3,))
    assert [mark // 256 for mark in trial.marks] == [8, 11, 16, 23, 32, 45, 64, 91, 128, 181, 195, 256, 362]
    assert trial.asides == (195 * 256,)


@settings(max_examples=50, deadline=None)
@given(st.integers(10, 10**6), st.sampled_from([1, 16, 300]), st.sampled_from(["wsd", "constant"]))
def test_marks_ascend_to_the_horizon_in_whole_batches(tokens: int, batch: int, schedule: str) -> None:
    asked = sweep(schedule, tokens=(tokens * 16, tokens * 48), batch_tokens=(batch,), seeds=Seeds((0,)))
    for bracket in brackets_of(asked):
        for trial in trials_of(asked, bracket, (1e-3,)):
            assert list(trial.marks) == sorted(set(trial.marks))
            assert trial.marks[-1] == trial.tokens
            assert all(mark % batch == 0 for mark in trial.marks)
            assert {c.tokens for c in bracket.cells} <= set(trial.marks)


def test_the_identity_survives_a_trip_through_json() -> None:
    import json

    asked = sweep()
    (trial, *_) = trials_of(asked, brackets_of(asked)[0], (1e-3,))
    back = Trial.from_json(json.loads(json.dumps(trial.to_json())))
    assert back == trial
    assert back.key == trial.key


def results(losses: dict[float, float | None]) -> list[Result]:
    return [
        Result(key=str(lr), lr=lr, seed=0, loss=loss, outcome="diverged" if loss is None else "finished")
        for lr, loss in losses.items()
    ]


@pytest.mark.parametrize(
    ("losses", "grown"),
    [
        ({1.0: 3.0, 2.0: 2.0, 4.0: 3.0}, []),
        ({1.0: 1.0, 2.0: 2.0, 4.0: 3.0}, [0.5]),
        ({1.0: 3.0, 2.0: 2.0, 4.0: 1.0}, [8.0]),
        ({1.0: 3.0, 2.0: 2.0, 4.0: None}, []),
        ({1.0: None, 2.0: None, 4.0: None}, []),
    ],
)
def test_a_grid_grows_only_beyond_an_edge_that_holds_the_best(
    losses: dict[float, float | None], grown: list[float]
) -> None:
    assert grown_lrs({"cell": results(losses)}, grow=2, added_low=0, added_high=0) == grown


def test_a_grid_stops_growing_at_its_limit() -> None:
    assert grown_lrs({"cell": results({1.0: 1.0, 2.0: 2.0})}, grow=2, added_low=2, added_high=0) == []


def test_the_price_counts_trials_tokens_and_flops() -> None:
    asked = sweep(seeds=Seeds((0,)), tokens=(1024,), batch_tokens=(256,))
    cost = price(trials_of(asked, brackets_of(asked)[0], (1e-3, 1e-2)))
    assert (cost.trials, cost.tokens) == (2, 2048)
    assert math.isclose(cost.flops, 2048 * 600.0)


def test_where_a_corpus_lies_is_no_part_of_the_identity_and_all_else_is() -> None:
    def part(path: str, kind: str = "tokens") -> Part:
        fields = {"width": 64, "data": {"name": kind, "path": path}}
        return Part("gpt", fields=fields, outside=("data.path",))

    assert part("/a").identity() == part("/b").identity() != part("/a", "other").identity()
    assert Part.from_json(part("/a").to_json()) == part("/a")
    assert part("/a").to_json()["fields"]["data"]["path"] == "/a"


def varied(values: dict[str, tuple[object, ...]], size: object, **law: object) -> Sweep:
    """Return a sweep with these further axes, N given by `size(values)`."""
    variants = []
    for chosen in itertools.product(*values.values()):
        named = dict(zip(values, chosen, strict=True))
        variants.append(Variant(Part("w", fields=named), Part("sgd"), replace(SIZE, parameters=size(named)), named))  # type: ignore[operator]
    made = sweep()
    return replace(made, variants=tuple(variants), axes=replace(made.axes, extra=values), law=LawSpec(**law))  # type: ignore[arg-type]


def labels(asked: Sweep) -> list[str]:
    return [group_label(asked, variant) for variant in asked.variants]


def test_a_law_in_parameters_takes_in_only_the_axes_that_change_them() -> None:
    axes = {"workload.width": (32, 64), "workload.init_scale": (0.5, 1.0), "optimizer.momentum": (0.9,)}
    both = ("tokens", "parameters")
    asked = varied(axes, lambda v: v["workload.width"] ** 2, variables=both)
    assert labels(asked) == ["init_scale 0.5, momentum 0.9", "init_scale 1.0, momentum 0.9"] * 2
    widths = varied({"workload.width": (32, 64)}, lambda v: v["workload.width"], variables=both)
    assert labels(widths) == ["", ""]
    same = varied({"workload.model": ("a", "b", "c")}, lambda v: 1 if v["workload.model"] < "c" else 2, variables=both)
    assert labels(same) == ["model a", "model b", "model c"]
    profiled = varied(axes, lambda v: v["workload.width"], variables=both, profile_over=("init_scale", "momentum"))
    assert labels(profiled) == [""] * 4


def test_the_law_of_a_value_with_fields_is_called_by_its_name_and_what_tells_it_apart() -> None:
    data = ({"name": "sotu", "seed": 0}, {"name": "tokens", "path": "/a"}, {"name": "tokens", "path": "/b"})
    assert labels(varied({"workload.data": data}, lambda v: 1)) == [
        "data sotu",
        "data tokens path /a",
        "data tokens path /b",
    ]


def test_a_trial_is_called_by_the_values_that_make_its_variant_and_its_key_does_not_depend_on_it() -> None:
    sweep = varied({"workload.width": (32, 64)}, lambda v: 1)
    trials = [trials_of(sweep, bracket, [1e-3])[0] for bracket in brackets_of(sweep)]
    assert {trial.label for trial in trials} == {"width 32", "width 64"}
    assert all(replace(trial, label="").key == trial.key for trial in trials)
