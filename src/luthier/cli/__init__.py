"""The command line: one small file per verb, imported only when the verb is used."""
