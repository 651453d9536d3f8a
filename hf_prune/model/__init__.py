"""The trained model as a function of its recorded parameters: used by influence, scores and diagnose."""
