"""Do our models compute what the original projects' code computes? One file per family of fixtures."""
