"""Numbers of other people's packages, kept, and the scripts that made them."""
