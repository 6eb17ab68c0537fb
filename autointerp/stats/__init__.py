"""From per-latent scores to statements about an SAE."""
