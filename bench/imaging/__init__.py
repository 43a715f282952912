"""What pictures cost: time per picture with adapters against none."""
