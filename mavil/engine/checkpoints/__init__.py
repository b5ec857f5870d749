"""What a run can go on from: reading and checking, writing beside training, keeping the best."""
