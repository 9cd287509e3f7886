"""Training methods as pure functions: one file is one paper, and `METHODS` is all of them.

A file holds PAPER, Config, the unreduced losses, the objective that turns them into sums, and METHOD. What several
papers share stands beside them: masked.py, kl.py, advantages.py, shaping.py, labels.py.
"""

from alignloop.algorithms import dpo, ppo, reward, sft
from alignloop.core.protocols import Method

METHODS: dict[str, Method] = {
    "sft": sft.METHOD,
    "reward": reward.METHOD,
    "dpo": dpo.METHOD,
    "ppo": ppo.METHOD,
}

__all__ = ["METHODS"]
