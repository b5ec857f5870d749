"""What a run at paper scale would take, on paper: inputs, work, estimates, limits, tables; and the plan of the shards."""
