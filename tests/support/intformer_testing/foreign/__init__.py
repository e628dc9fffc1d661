"""What the suite of foreign directories is made of.

directories  tiny models with tokenizers, as the libraries write them
libraries    what those libraries answer: the reference of a case
expect       decorators that say what must happen with a directory
"""
