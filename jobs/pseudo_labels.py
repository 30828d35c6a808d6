"""Label a corpus: images in, Parquet shards of pseudo labels out; resumable, on Ray Data."""

from saff.cli import label, run_alone

if __name__ == "__main__":
    run_alone(label)
