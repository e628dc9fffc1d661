/* What a harness demands: where it does not hold, the program says so and aborts. */
#include <stdio.h>
#include <stdlib.h>

#define DEMAND(true_here) \
  if (!(true_here)) fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, #true_here), abort()
