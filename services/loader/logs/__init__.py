"""The backends' output: a bounded log for each model. May import no other package of the loader."""
