"""What all steps share: the driver of unit steps, launches, states, dry runs, where work runs."""
