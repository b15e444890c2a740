"""The formats, pure: shard notation, keys, compression, tar members and samples. Streams are given; none is opened."""
