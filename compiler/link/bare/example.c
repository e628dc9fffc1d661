/* One sequence through @name@. Build: cc @name@_example.c @archive@ -o example
 *
 * On a microcontroller the weights stay in flash: they are const data, section .rodata. */
#include <stdio.h>

#include "@name@.h"

static _Alignas(@NAME@_ARENA_ALIGN) unsigned char arena[@NAME@_ARENA_BYTES];
static int32_t out[@NAME@_MAX_OUTPUT];

int main(void) {
  /* token ids as the model's tokenizer makes them */
  static const int32_t ids[] = {@ids@};
  static const int32_t offsets[] = {0, @count@}; /* one sequence, of all these tokens */
  static const int32_t wanted[] = {0};           /* where @NAME@_MAX_POSITIONS is not 0 */
  @name@_input input = {.num_tokens = @count@, .batch = 1, .input_ids = ids, .cu_seqlens = offsets};
  if (@NAME@_MAX_POSITIONS) input.num_positions = 1, input.positions = wanted;

  int code = @name@_run(&input, arena, sizeof arena, out, sizeof out / sizeof *out);
  if (code) {
    printf("%s\n", @name@_message(code));
    return 1;
  }
  printf("%u integers:", (unsigned)@name@_output_size(&input));
  for (size_t i = 0; i < @name@_output_size(&input) && i < 8; i++) printf(" %ld", (long)out[i]);
  printf("\n");
  return 0;
}
