"""What happens between the layers of a module: activations that are rounded, or packed for the backward pass."""
