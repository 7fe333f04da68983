"""The parts of a step: buckets, steps on the host and on devices with the same verbs, and where totals meet."""
