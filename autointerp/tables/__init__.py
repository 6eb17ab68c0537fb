"""Tables on disk: schemas, part files, the finished parquet files of a run, and reading them back."""
