"""Small labelled files for tests of training, from our sentences."""

import json

from intformer_testing import small_tokenizer


def table(path, rows=48, labels=(0, 1), pairs=False, sentences=None):
    """Our sentences (the first few, over and over), the labels in turn."""
    words = small_tokenizer.SENTENCES[:sentences]
    header = "idx\tlabel\t" + ("sentence1\tsentence2" if pairs else "sentence")
    lines = [header]
    for i in range(rows):
        text = words[i % len(words)].replace("\t", " ")
        second = f"\t{words[(i * 7) % len(words)]}" if pairs else ""
        lines.append(f"{i}\t{labels[i % len(labels)]}\t{text}{second}")
    path.write_text("\n".join(lines) + "\n")
    return path


def answers(path, rows=24):
    lines = []
    for i in range(rows):
        context = small_tokenizer.SENTENCES[i % len(small_tokenizer.SENTENCES)]
        word = context.split()[1]
        found = {"text": word, "start": context.index(word)}
        lines.append(json.dumps({"question": "which", "context": context, "answers": [found]}))
    path.write_text("\n".join(lines) + "\n")
    return path


def words(path, rows=24):
    lines = []
    for i in range(rows):
        split = small_tokenizer.SENTENCES[i % len(small_tokenizer.SENTENCES)].split()
        labels = ["LONG" if len(word) > 5 else "O" for word in split]
        lines.append(json.dumps({"words": split, "labels": labels}))
    path.write_text("\n".join(lines) + "\n")
    return path
