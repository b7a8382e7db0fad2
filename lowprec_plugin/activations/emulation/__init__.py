"""The arithmetic of fixed-point hardware: layer outputs and back-propagated errors rounded, as the paper does."""

from lowprec_plugin.activations.emulation.emulator import Emulator, emulate
from lowprec_plugin.activations.emulation.settings import Emulation

__all__ = ["Emulation", "Emulator", "emulate"]
