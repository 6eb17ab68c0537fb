"""The subject model: loading it, reading its activations up to a hookpoint, editing them."""
