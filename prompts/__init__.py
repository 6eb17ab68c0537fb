"""What is asked of a model: request kinds (`prompts.requests`) and versioned templates (`prompts.render`)."""
