"""Curve laws on the public curves: what two cheap runs say of other schedules, and of runs that are still going.

    POWERSWEEP_PUBLIC_DATA=... python benchmarks/curve_laws.py          goals L4 and L5, one-curve fits, the pruner fact
    python benchmarks/curve_laws.py fsl                                 where FSL's prior comes from; needs no data

Fitted on constant_24000 + wsdcon_9 of a size, asked for its other curves; nothing of those is used in a fit or an
interval. Priors are of the published parameters of the other two sizes. Prints tables and a JSON line; exit code 1
where a floor is missed: the default law (momentum) above .0045 MAE or below .90 R2 after divergence, a one-curve fit of
it below .985 R2, or above .012 from the first fifth of a run.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from orchestrator.config.sources import read_source
from sweeps.errors import FitError
from sweeps.forecast.fitting import FittedCurveLaw, fit_curves, known
from sweeps.forecast.forms import Fsl, MultiPower, curve_form
from sweeps.forecast.published import MULTI_POWER_REPOSITORY
from sweeps.forecast.records import LossCurve, LrPath
from sweeps.forecast.running import forecast_final
from sweeps.forecast.spread import spread_of
from sweeps.forecast.traces import fit_power
from sweeps.replay.curve_files import read_curves
from sweeps.replay.curves import replay_curves
from sweeps.replay.schedules import scheduled_paths

HERE = Path(__file__).parent
CHEAP = ("constant_24000", "wsdcon_9")
LAWS: dict[str, tuple[str, str | None, str | None]] = {  # label -> law, convention, prior ({}: the size left out)
    "momentum": ("momentum", None, None),
    "multi-power, ramp": ("multi-power", "ramp", "repository without {}"),
    "multi-power, area": ("multi-power", "area", "paper without {}"),
    "multi-power, no prior": ("multi-power", "ramp", "none"),
    "fsl": ("fsl", None, "drawn without {}"),
    "fsl, no prior": ("fsl", None, "none"),
    "linear-drop": ("linear-drop", None, None),
    "no-annealing": ("no-annealing", None, None),
}
SHARES = (0.2, 0.3, 0.5, 0.7)
CONFIDENCES = (0.95, 0.8)


def paths() -> dict[str, LrPath]:
    """Return the LR of every step of the public curves."""
    file = HERE / "lr_curves_schedules.yaml"
    return scheduled_paths(read_source(str(file), (), cwd=HERE, environ={}).tree, place=file.name)


def curves_of(size: str) -> dict[str, LossCurve]:
    """Return the public curves of a size."""
    root = os.environ.get("POWERSWEEP_PUBLIC_DATA")
    if not root:
        sys.exit("POWERSWEEP_PUBLIC_DATA is not set: the folder that holds lr_curves/")
    return read_curves(Path(root) / "lr_curves" / size, paths=paths(), warmup_steps=None).curves


def law_scores(size: str, fit: Sequence[str], *, labels: Sequence[str] = tuple(LAWS)) -> dict[str, dict[str, float]]:
    """Print and return the scores of each law fitted on these curves, over the others."""
    curves = curves_of(size)
    print(f"\n{size}M, fitted on {' + '.join(fit)}, mean over {len(set(curves) - set(fit))} others")
    print(f"{'law':24s}{'MAE':>8s}{'MAPE %':>8s}{'R2':>9s}{'after':>8s}{'final':>8s}{'worst':>8s}{'rank':>6s}")
    found: dict[str, dict[str, float]] = {}
    for label in labels:
        name, warmup, prior = LAWS[label]
        form = curve_form(name, warmup=warmup, prior=prior and prior.format(f"{size}M"))
        try:
            result = replay_curves(curves, fit, form=form, law_name=label)
        except FitError as error:
            print(f"{label:24s}{error}")
            continue
        one = {key: result.mean(key) for key in ("mae", "mape", "r2", "r2_after", "final_error")}
        one["worst"] = max(score.final_error for score in result.held_out)
        one["spearman"] = result.spearman
        found[label] = {key: float("nan") if value is None else value for key, value in one.items()}
        row = found[label]
        print(
            f"{label:24s}{row['mae']:8.4f}{row['mape']:8.3f}{row['r2']:9.4f}{row['r2_after']:8.3f}"
            f"{row['final_error']:8.4f}{row['worst']:8.4f}{row['spearman']:6.2f}"
        )
    return found


def asked(curve: LossCurve, share: float) -> LossCurve:
    """Return what was seen of a run after a share of it, the schedule ending at its last recorded point."""
    path = LrPath(curve.path.lr[: curve.step[-1]], curve.path.warmup_steps)
    return LossCurve(curve.name, path, curve.step, curve.loss).until(int(share * len(curve.path)))


def forecasts(size: str) -> dict[str, float]:
    """Print errors of forecasts from part of a run by law and baseline; return the mean of each at the first share."""
    curves = curves_of(size)
    held_out = [curves[name] for name in sorted(set(curves) - set(CHEAP))]
    print(
        f"\n{size}M, final loss from part of a run, mean absolute error in nats (runs past their last fall count too)"
    )
    print(f"{'seen':24s}" + "".join(f"{share:>9.0%}" for share in SHARES) + "   inside 95 %, 80 %; half-width 95 %")
    first: dict[str, float] = {}
    for label in ("momentum", "multi-power, ramp", "multi-power, area", "fsl"):
        name, warmup, prior = LAWS[label]
        form = curve_form(name, warmup=warmup, prior=prior and prior.format(f"{size}M"))
        law = fit_curves([curves[one] for one in CHEAP], form)
        errors, inside, width = _forecast_rows(law, held_out)
        first[label] = errors[0]
        counts = ", ".join(f"{hits} of {number}" for hits, number in inside.values())
        print(f"{label:24s}" + "".join(f"{error:9.4f}" for error in errors) + f"   {counts}; {width:.4f}")
    for label in ("power law in steps", "last value"):
        errors = [float(np.mean([_baseline(label, curve, share) for curve in held_out])) for share in SHARES]
        first[label] = errors[0]
        print(f"{label:24s}" + "".join(f"{error:9.4f}" for error in errors))
    return first


def _baseline(label: str, curve: LossCurve, share: float) -> float:
    seen, end = asked(curve, share), curve.step[-1:]
    guess = fit_power(seen).predict(end)[0] if label == "power law in steps" else seen.loss[-1]
    return abs(float(guess) - float(curve.loss[-1]))


def _forecast_rows(
    law: FittedCurveLaw, held_out: Sequence[LossCurve]
) -> tuple[list[float], Mapping[float, tuple[int, int]], float]:
    """Return mean errors by share, hits and number by confidence over all shares, and the mean half-width at 95 %."""
    spread, errors, widths = spread_of(law), [], []
    hits = dict.fromkeys(CONFIDENCES, 0)
    for share in SHARES:
        off = []
        for curve in held_out:
            last = float(curve.loss[-1])
            for confidence in CONFIDENCES:
                found = forecast_final(law, asked(curve, share), confidence=confidence, spread=spread)
                hits[confidence] += found.low <= last <= found.high
                if confidence == CONFIDENCES[0]:
                    off.append(abs(found.final - last))
                    widths.append((found.high - found.low) / 2)
        errors.append(float(np.mean(off)))
    number = len(SHARES) * len(held_out)
    return errors, {confidence: (hit, number) for confidence, hit in hits.items()}, float(np.mean(widths))


def pruner() -> bool:
    """Print who leads at five sixths, and who is forecast to end first; return whether the winner is kept."""
    curves = curves_of("25")
    law = fit_curves([curves[name] for name in CHEAP], curve_form("momentum"))
    wsd, cosine = curves["wsd_20000_24000"], curves["cosine_24000"]
    kept = True
    print("\n25M, WSD against cosine: who leads, who is forecast to end first")
    for mark in (18_000, 20_000):
        seen = [curve.until(mark) for curve in (wsd, cosine)]
        ends = [forecast_final(law, one).final for one in seen]
        kept &= ends[0] < ends[1]
        print(
            f"step {mark}: WSD trails by {seen[0].loss[-1] - seen[1].loss[-1]:.4f}, "
            f"forecast to end {ends[1] - ends[0]:.4f} below"
        )
    print(f"it ended {cosine.loss[-1] - wsd.loss[-1]:.4f} below")
    return bool(kept)


def fsl() -> None:
    """Print what FSL is for the published multi-power laws: the centre of its prior."""
    all_paths = paths()
    chosen = ("constant_24000", "cosine_24000", "wsdcon_3", "wsdcon_9", "wsdcon_18", "wsdld_20000_24000")
    for size, parameters in MULTI_POWER_REPOSITORY.items():
        law = known(MultiPower(prior=None), parameters)
        drawn = []
        for name in chosen:
            path = all_paths[name]
            step_P = np.arange(path.warmup_steps + 16, len(path) + 1, 128)
            drawn.append(LossCurve(name, path, step_P, law.predict(path, step_P)))
        found = fit_curves(drawn, Fsl(prior=None))
        values = ", ".join(f"{name} {value:.4g}" for name, value in found.parameters.items())
        print(f"{size}: {values}; off by {found.residual_sd:.1e} of the loss")


def main() -> int:
    """Run, and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("what", nargs="?", choices=("all", "fsl"), default="all")
    if parser.parse_args().what == "fsl":
        fsl()
        return 0
    l4 = law_scores("25", CHEAP)
    hundred = law_scores("100", CHEAP)
    usual = ("momentum", "multi-power, ramp", "fsl", "linear-drop")
    single = {name: law_scores("25", [name], labels=usual) for name in ("cosine_24000", "wsdld_20000_24000")}
    l5 = forecasts("25")
    kept = pruner()
    best = min(l4, key=lambda label: l4[label]["mae"])
    floors = {
        "L4 MAE": l4["momentum"]["mae"] <= 0.0045,
        "L4 R2 after": l4["momentum"]["r2_after"] >= 0.90,
        "one curve": min(found["momentum"]["r2"] for found in single.values()) >= 0.985,
        "L5": l5["momentum"] <= 0.012,
        "winner kept": kept,
    }
    line = {
        "l4_default": l4["momentum"],
        "l4_best": {"law": best, **l4[best]},
        "l4_100": hundred["momentum"],
        "one_curve_r2": {name: found["momentum"]["r2"] for name, found in single.items()},
        "l5": l5,
        "floors": floors,
    }
    print("\n" + json.dumps(line))
    return 0 if all(floors.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
