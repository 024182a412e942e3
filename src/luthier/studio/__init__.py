"""A local web page over run directories. Reads files only; starts without torch; nothing in a run can act on it."""
