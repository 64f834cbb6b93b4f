"""What the commands do with compiler, driver and simulator: targets, measuring, the demo, pictures and charts."""
