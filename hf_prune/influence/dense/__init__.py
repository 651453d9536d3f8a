"""The exact engine: vectors of the parameters' length go back through the window."""
