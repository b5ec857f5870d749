"""The process around a run: device, seeds, signals, a watchdog for hangs, and which code it is."""
