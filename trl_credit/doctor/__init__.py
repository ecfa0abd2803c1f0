"""`trl-credit doctor`: what is installed here, what is wrong with it, and the command that mends it."""
