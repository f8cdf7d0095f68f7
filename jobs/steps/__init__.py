"""Code that all steps share: the driver of unit steps, launches, states, dry runs, and the choice of workers."""
