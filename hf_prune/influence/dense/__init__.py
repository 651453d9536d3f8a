"""The exact engine: query gradients of the parameters' length go back through the window."""
