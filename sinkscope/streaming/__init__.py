"""Reading long texts under a policy: what is kept, what it costs, and how well the model predicts with it."""
