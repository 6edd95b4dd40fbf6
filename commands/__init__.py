"""One module per command: `commands.VERB.VERB(args)` is what `superfer VERB` runs."""
