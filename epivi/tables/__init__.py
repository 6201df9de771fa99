"""Tables as Parquet files: columns with units, whole files, parts of shards."""
