"""From the linear codec to a trained network."""
