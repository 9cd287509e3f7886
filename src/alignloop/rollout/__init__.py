"""Engines that draw samples: local (the trainer's own module), scripted (tests); and the shards that keep samples."""
