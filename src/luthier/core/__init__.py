"""The ground floor: types, families, run directory, events, errors, seeds, fingerprints. No torch."""
