"""From text to stored activations: corpus, tokens, one pass of the subject model, sparse codes."""
