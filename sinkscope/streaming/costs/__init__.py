"""What a policy costs: counted from the model's shapes, and measured."""
