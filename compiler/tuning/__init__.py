"""Auto-scheduling: MetaSchedule over a space of our own, and the records that compiling reads.

driver    one tuning job: tasks, search, the race of the best, the logs
tasks     what there is to tune, with inputs and expected outputs from the NumPy references
workload  a task as MetaSchedule sees it
search    which candidate is measured next
build     candidate -> loadable kernel, in processes that may be killed
measure   kernel -> seconds, here or on a remote machine; a wrong result has no speed
gpu       what build and measure do, for a GPU of this machine
ways      which of the two a family of chips takes
records   databases -> which versions of a kernel are compiled
"""
