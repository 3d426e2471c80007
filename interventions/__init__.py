"""Does the model use what the probes read? Edits activations while an image is made, and scores the image."""
