"""Records, configuration, errors, protocols, tracking. Free of torch: batches live in `alignloop.core.batch`."""
