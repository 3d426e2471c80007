"""The science of reading: model, sites, sampling with capture, labels, probes and metrics."""
