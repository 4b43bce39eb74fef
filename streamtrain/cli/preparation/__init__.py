"""What comes before the first step of a training: the cores that are free, a dry run, raw files told from datasets."""
