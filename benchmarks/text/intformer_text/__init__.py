"""From text to answer: ours beside what users of sentence embeddings run."""
