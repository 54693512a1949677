"""Where bytes live: on a disk, in a bucket, or at the Hugging Face hub."""
