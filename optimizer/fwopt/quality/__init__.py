"""What a precision costs in quality: teacher-forced comparison with the unquantized model, layer by layer."""
