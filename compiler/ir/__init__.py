"""What programs are: the float graph of an encoder."""
