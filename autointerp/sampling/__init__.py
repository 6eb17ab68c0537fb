"""Which windows a latent is explained from and scored on."""
