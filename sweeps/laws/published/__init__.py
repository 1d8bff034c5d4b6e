"""Published laws of the best LR as ready rules: source, convention, units and the range each was fitted on."""

from __future__ import annotations

from collections.abc import Mapping

from sweeps.errors import unknown_name
from sweeps.laws.published.law import Answer, PublishedLaw, Question
from sweeps.laws.published.terms import Anchor, Logarithm, Power, Ratio

__all__ = ["PUBLISHED", "Anchor", "Answer", "Logarithm", "Power", "PublishedLaw", "Question", "Ratio", "published"]


def published(name: str) -> PublishedLaw:
    """Return a published law by name. Raises ConfigError."""
    try:
        return PUBLISHED[name]
    except KeyError:
        raise unknown_name("--law", name, PUBLISHED, "published law") from None


PUBLISHED: Mapping[str, PublishedLaw] = {
    law.name: law
    for law in (
        PublishedLaw(
            name="step-law",
            formula="LR = 1.79 N^-0.713 D^0.307, B = 0.58 D^0.571 tokens",
            source="Step Law, arXiv:2503.04715",
            convention="batch free",
            trust="published",
            setting="AdamW, cosine to an LR of 1e-5, sequences of 2,048 tokens",
            lr=Power(1.79, {"parameters": -0.713, "tokens": 0.307}),
            batch=Power(0.58, {"tokens": 0.571}),
            fitted={"parameters": (6e7, 1e9), "tokens": (2e9, 1e11)},
        ),
        PublishedLaw(
            name="power-scheduler",
            formula="LR = B 4.6 T^-0.51, B in sequences of 4,096 tokens",
            source="Power Scheduler, arXiv:2408.13359, eq. 6",
            convention="batch fixed",
            trust="published",
            setting="WSD with 10 % decay, muP, near the three best batches of each T",
            lr=Power(4.6, {"batch_sequences": 1.0, "tokens": -0.51}),
            fitted={
                "tokens": (2e9, 2.56e11),
                "batch_sequences": (16.0, 512.0),
                "sequence_tokens": (4096.0, 4096.0),
                "parameters": (1.2e7, 1.21e8),
            },
        ),
        PublishedLaw(
            name="deepseek",
            formula="LR = 0.3118 C^-0.1250, B = 0.2920 C^0.3271 tokens",
            source="DeepSeek LLM, arXiv:2401.02954",
            convention="batch free",
            trust="secondary",
            setting="AdamW, multi-step schedule",
            lr=Power(0.3118, {"compute_flops": -0.1250}),
            batch=Power(0.2920, {"compute_flops": 0.3271}),
            fitted={"compute_flops": (1e17, 2e19)},
        ),
        PublishedLaw(
            name="bjorck",
            formula="LR(N2, D2) = LR(N1, D1) (N2 / N1)^-0.23 (D2 / D1)^-0.32",
            source="Bjorck et al., arXiv:2409.19913",
            convention="batch fixed",
            trust="secondary",
            setting="GPT-3 style models; the constant differs between transcriptions, so an anchor sets it",
            lr=Ratio({"parameters": -0.23, "tokens": -0.32}, optional=("parameters",)),
            fitted={"tokens": (2.5e10, 8e11)},
        ),
        PublishedLaw(
            name="porian",
            formula="LR = 3.7 N^-0.36, B = 0.7576 N^0.703 tokens, at D = 20 N",
            source="Porian et al., arXiv:2406.19146",
            convention="batch free",
            trust="secondary",
            setting="20 tokens a parameter, beta2 tuned",
            lr=Power(3.7, {"parameters": -0.36}),
            batch=Power(0.7576, {"parameters": 0.703}),
            fitted={"tokens_per_parameter": (20.0, 20.0)},
        ),
        PublishedLaw(
            name="openai",
            formula="LR = 0.003239 - 0.0001395 ln N",
            source="Kaplan et al., arXiv:2001.08361, eq. D.1",
            convention="batch fixed",
            trust="secondary",
            setting="Adam, 512 sequences of 1,024 tokens, cosine to 0; a rule of thumb that ignores tokens",
            lr=Logarithm(0.003239, -0.0001395, "parameters"),
            fitted={"batch_tokens": (2.0**19, 2.0**19), "parameters": (768.0, 1.5e9)},
        ),
    )
}
