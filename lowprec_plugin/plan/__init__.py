"""What a training run will hold and send, in bytes per GPU, before anything is bought or run."""

from lowprec_plugin.plan.amounts import Amounts
from lowprec_plugin.plan.planning import Plan, plan

__all__ = ["Amounts", "Plan", "plan"]
