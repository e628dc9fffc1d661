"""What can be known of chips that are not here: instructions counted by an emulator, and times by a
model of the chip. Every figure of it is a prediction.
"""
