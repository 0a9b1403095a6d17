"""The adjusted model: a scheme, or a mixture of schemes, written as a checkpoint that engines load, and read back."""
