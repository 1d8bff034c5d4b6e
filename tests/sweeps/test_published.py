from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sweeps.errors import ConfigError, FitError
from sweeps.laws.published import PUBLISHED, Anchor, Answer, Power, Question, published

FULL = {
    "tokens": 2e10,
    "parameters": 1e9,
    "batch_tokens": 2.0**19,
    "sequence_tokens": 4096.0,
    "anchor": Anchor(3e-3, 1e11, 1e9),
}


def ask(name: str, **known) -> Answer:
    return published(name).ask(Question(**known))


def to_digits(value: float, digits: int) -> float:
    return float(f"{value:.{digits - 1}e}")


def test_step_law_says_what_its_paper_says():
    large = ask("step-law", tokens=1.4e12, parameters=7e9)
    assert to_digits(large.lr, 4) == 9.166e-4
    assert to_digits(large.batch_tokens, 5) == 4.9988e6
    assert round(large.batch_tokens / 2048, 1) == 2440.8
    small = ask("step-law", tokens=4e10, parameters=429_260_800)
    assert to_digits(small.lr, 5) == 2.2519e-3
    assert round(small.batch_tokens / 2048, 1) == 320.5


def test_power_scheduler_says_what_its_paper_says():
    far = ask("power-scheduler", tokens=1e13, batch_tokens=1024 * 4096, sequence_tokens=4096)
    assert to_digits(far.lr, 5) == 0.0011042
    # the constants of the paper's own large runs, a = 4
    eta = Power(4.0, {"batch_sequences": 1.0, "tokens": -0.51})
    assert to_digits(eta.value({"batch_sequences": 128.0, "tokens": 2e9}, None), 5) == 0.0092415
    assert to_digits(eta.value({"batch_sequences": 1024.0, "tokens": 1e12}, None), 5) == 0.0031071


def test_deepseek_says_what_its_paper_says():
    found = ask("deepseek", tokens=1e11, compute_flops=1e20)
    assert to_digits(found.lr, 4) == 9.860e-4
    assert to_digits(found.batch_tokens, 5) == 1.0171e6


def test_deepseek_without_its_compute_says_what_it_assumed():
    found = ask("deepseek", tokens=1e10, parameters=1e8)
    assert found.lr == pytest.approx(0.3118 * 6e18**-0.125)
    assert any("6 N T" in said for said in found.warnings)


def test_bjorck_carries_an_anchor_over():
    at = {"tokens": 8e11, "anchor": Anchor(1.0, 2.5e10)}
    assert round(ask("bjorck", **at).lr, 4) == 0.3299
    larger = ask("bjorck", tokens=2.5e10, parameters=4e9, anchor=Anchor(2e-3, 2.5e10, 1e9))
    assert larger.lr == pytest.approx(2e-3 * 4**-0.23)


def test_porian_and_openai_are_their_formulas():
    found = ask("porian", tokens=2e10, parameters=1e9)
    assert found.lr == pytest.approx(3.7 * 1e9**-0.36)
    assert found.batch_tokens == pytest.approx(0.7576 * 1e9**0.703)
    assert found.warnings == ()
    assert ask("openai", tokens=2e10, parameters=1e9).lr == pytest.approx(0.003239 - 0.0001395 * math.log(1e9))


@pytest.mark.parametrize("name", PUBLISHED)
def test_every_published_law_says_where_it_comes_from(name):
    law = published(name)
    assert law.name == name
    assert "arXiv:" in law.source
    assert law.convention in ("batch fixed", "batch free")
    assert law.trust in ("published", "secondary")
    assert law.fitted
    assert all(0 < low <= high for low, high in law.fitted.values())
    # a law that is at the best batch says which batch that is, and only such a law
    assert (law.batch is not None) == (law.convention == "batch free")


@pytest.mark.parametrize("name", PUBLISHED)
def test_every_published_law_answers_a_full_question_with_a_positive_lr(name):
    found = ask(name, **FULL)
    assert 1e-5 < found.lr < 1.0


@pytest.mark.parametrize("name", PUBLISHED)
def test_every_published_law_warns_outside_what_it_was_fitted_on(name):
    law = published(name)
    axis, (_, high) = next(iter(law.fitted.items()))
    beyond = {"tokens_per_parameter": {"tokens": 1e12}}.get(axis, {axis: 10.0 * high})
    found = ask(name, **{**FULL, **beyond})
    assert any(said.startswith(axis) for said in found.warnings)


@settings(max_examples=20, deadline=None)
@given(sequence=st.sampled_from([512.0, 2048.0, 4096.0, 8192.0]), factor=st.floats(0.1, 10.0))
def test_power_scheduler_counts_sequences_however_long_they_are(sequence, factor):
    batch = 128 * sequence
    known = {"tokens": 2e9, "sequence_tokens": sequence}
    one, more = (ask("power-scheduler", batch_tokens=b, **known) for b in (batch, factor * batch))
    assert one.lr == pytest.approx(128 * 4.6 * 2e9**-0.51)
    assert more.lr == pytest.approx(factor * one.lr)


@pytest.mark.parametrize(
    ("name", "known", "message"),
    [
        ("step-law", {}, "step-law: needs parameters"),
        ("power-scheduler", {"batch_tokens": 2.0**19}, "needs batch_tokens and sequence_tokens"),
        ("deepseek", {}, "needs parameters or compute_flops"),
        ("bjorck", {}, "needs an anchor"),
        ("bjorck", {"parameters": 1e9, "anchor": Anchor(1e-3, 1e9)}, "the run's is given and the anchor's is not"),
        ("bjorck", {"anchor": Anchor(1e-3, 1e9, 1e9)}, "the anchor's is given and the run's is not"),
        ("bjorck", {"anchor": Anchor(-1.0, 1e9)}, "anchor lr: must be above 0"),
        ("porian", {"parameters": math.nan}, "parameters: must be above 0 and finite, got nan"),
    ],
)
def test_what_a_published_law_cannot_answer_is_refused(name, known, message):
    with pytest.raises(ConfigError, match=message):
        ask(name, tokens=1e10, **known)


def test_a_formula_that_has_no_positive_value_is_refused_with_what_it_gives():
    with pytest.raises(FitError, match="no positive LR") as caught:
        ask("openai", tokens=1e10, parameters=1e12)
    assert caught.value.estimate < 0


def test_a_batch_free_law_never_answers_for_another_batch_in_silence():
    own = ask("step-law", tokens=4e10, parameters=4e8)
    assert ask("step-law", tokens=4e10, parameters=4e8, batch_tokens=own.batch_tokens).warnings == ()
    other = ask("step-law", tokens=4e10, parameters=4e8, batch_tokens=4 * own.batch_tokens)
    assert other.lr == own.lr
    assert any("the law's own batch" in said for said in other.warnings)


def test_an_unknown_published_law_is_named_with_the_nearest():
    with pytest.raises(ConfigError, match=r"'steplaw' \(did you mean 'step-law'\?\)"):
        published("steplaw")
