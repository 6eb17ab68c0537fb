"""The latent store: tokens once, activations as CSR by latent, memory-mapped."""
