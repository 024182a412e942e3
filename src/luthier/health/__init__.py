"""Is the adapter alive, sane and the right one? Probes measure, diagnoses judge."""
