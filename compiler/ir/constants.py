"""Numbers of the physical layout that passes, ops, schedules and the linker share."""

BLOCK = 8  # rows in one block of a buffer
LANES = 16  # columns come in multiples of it; so many rows of a weight lie together
DEPTH = 4  # int8 products that a dot product adds to one int32 lane
ZERO_POINT = 128  # stored minus logical number of int8 values that a matmul reads as uint8
READ_AHEAD = 3  # blocks that kernels may read past the last row of any buffer
