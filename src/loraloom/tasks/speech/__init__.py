"""What the tasks over sound share: spectrograms, masks, transcripts, voices."""
