"""The figures of a run at one moment, as plain numbers: what is held, what crossed the network, what rounding did."""

from lowprec_plugin.memory import Kinds
from lowprec_plugin.telemetry.concerns import Concern, concerns
from lowprec_plugin.telemetry.exponents import block_exponents, exponent_spread
from lowprec_plugin.telemetry.held import Held, held
from lowprec_plugin.telemetry.layers import LayerReport, counts_by_name, layers
from lowprec_plugin.telemetry.predicted import predicted
from lowprec_plugin.telemetry.resident import peak_bytes

__all__ = [
    "Concern", "Held", "Kinds", "LayerReport", "block_exponents", "concerns", "counts_by_name", "exponent_spread",
    "held", "layers", "peak_bytes", "predicted",
]  # fmt: skip
