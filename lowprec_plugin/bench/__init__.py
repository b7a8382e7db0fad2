"""Speed beside float32's: of updates, training steps and emulation on one machine, and of gradients on a network."""
