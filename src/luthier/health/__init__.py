"""Is the adapter alive and well? Probes give numbers, diagnoses judge them, a self-test plants every fault."""
