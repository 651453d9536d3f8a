"""After training: which rows made the model say what it says."""
