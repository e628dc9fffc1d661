"""What tests share: generators of models, emulators of devices, programs that look from outside.

One package with a name of its own, because transformers and other packages probe for optional
packages by name: a loose module `kernels` would be imported in place of theirs.
"""
