"""ARM's microcontrollers with DSP instructions: Cortex-M4, M7, M33, M55 and newer."""
