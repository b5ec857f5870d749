"""Between public checkpoints and run folders: what their files tell, our settings for it, and the way back."""
