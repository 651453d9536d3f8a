"""The engine for models of any size: every visit's gradient is sketched once, and sweeps run on the sketches."""
