"""Which trial to run next, so that the law's interval at a target shrinks most for its cost."""

from sweeps.choose.cost import trial_and_flops
from sweeps.choose.design import spread_out, start_of, starting_laws
from sweeps.choose.gain import Pool, Target, next_places

__all__ = ["Pool", "Target", "next_places", "spread_out", "start_of", "starting_laws", "trial_and_flops"]
